const express = require("express");

const app = express();
app.get("/health", (request, response) => response.json({ status: "ok" }));
app.get("/prices/:day", (request, response) => response.json({ day: request.params.day }));
app.get("/slow", (request, response) => setTimeout(() => response.json({}), 150));
app.post("/optimize", (request, response) => response.status(500).json({}));
app.listen(process.env.PORT);
