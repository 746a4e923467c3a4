# The server, the commands and the demo. Nothing in it runs as root.
FROM python:3.11-slim AS build
RUN python -m venv /opt/tailspan && pip install --no-cache-dir uv
WORKDIR /build
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY otel otel
COPY mcp-server mcp-server
COPY src src
COPY static static
RUN uv pip install --no-cache --python /opt/tailspan/bin/python --constraint requirements.lock ./otel ./mcp-server .

FROM python:3.11-slim
COPY --from=build /opt/tailspan /opt/tailspan
# 10001 is the user of the collector's image too: what one writes for its owner alone, the other may read.
# A new volume gets the owner of the directory it is mounted at, also of those that are mounted here for others.
RUN useradd --uid 10001 --no-create-home tailspan \
    && install --directory --mode 700 --owner tailspan /var/lib/tailspan /var/lib/otelcol /run/demo /owner /tokens \
        /tokens/collector /tokens/server
ENV PATH=/opt/tailspan/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
CMD ["tailspan", "serve"]
