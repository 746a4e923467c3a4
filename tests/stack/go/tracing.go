package main

import (
	"context"
	"net/http"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// startTracing sends every span; what it returns sends the last ones.
func startTracing(ctx context.Context) (func(context.Context) error, error) {
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, err
	}
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter))
	otel.SetTracerProvider(provider)
	return provider.Shutdown, nil
}

// traced is the server's handler: a span a request, with its route and with who called; of the headers, no others.
func traced(routes *http.ServeMux) http.Handler {
	return otelhttp.NewHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		span := trace.SpanFromContext(r.Context())
		for _, header := range []string{"Tailscale-User-Login", "X-Forwarded-For"} {
			if values := r.Header.Values(header); len(values) > 0 {
				span.SetAttributes(attribute.StringSlice("http.request.header."+strings.ToLower(header), values))
			}
		}
		routes.ServeHTTP(w, r)
		if at := strings.IndexByte(r.Pattern, '/'); at >= 0 { // behind the method: "GET /prices/{day}"
			span.SetAttributes(attribute.String("http.route", r.Pattern[at:]))
		}
	}), "")
}
