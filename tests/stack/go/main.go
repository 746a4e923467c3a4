package main

import (
	"context"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	flush, err := startTracing(ctx)
	if err != nil {
		log.Fatal(err)
	}
	routes := http.NewServeMux()
	routes.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	routes.HandleFunc("GET /prices/{day}", func(http.ResponseWriter, *http.Request) {})
	routes.HandleFunc("GET /slow", func(http.ResponseWriter, *http.Request) { time.Sleep(150 * time.Millisecond) })
	routes.HandleFunc("POST /optimize", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	server := &http.Server{Addr: ":" + os.Getenv("PORT"), Handler: traced(routes)}
	go server.ListenAndServe()
	<-ctx.Done()
	server.Shutdown(context.Background())
	flush(context.Background())
}
