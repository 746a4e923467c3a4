// Loaded before the app: node --require ./tracing.js app.js
const { NodeSDK } = require("@opentelemetry/sdk-node");
const { HttpInstrumentation } = require("@opentelemetry/instrumentation-http");
const { ExpressInstrumentation } = require("@opentelemetry/instrumentation-express");

const requestHeaders = ["tailscale-user-login", "x-forwarded-for"]; // who, and from which device; no others
const sdk = new NodeSDK({
  instrumentations: [
    new HttpInstrumentation({ headersToSpanAttributes: { server: { requestHeaders } } }),
    new ExpressInstrumentation(), // without it there are no routes
  ],
});
sdk.start();
for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => sdk.shutdown().finally(() => process.exit(0)));
