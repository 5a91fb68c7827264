# Debian's Prometheus in place of prom/prometheus, where that cannot be pulled. Same paths, same user, and a wget.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update -qq && apt-get install --yes -qq --no-install-recommends prometheus wget \
    && install --directory --owner=nobody --group=nogroup /prometheus && rm -rf /var/lib/apt/lists/*
USER nobody
VOLUME /prometheus
ENTRYPOINT ["prometheus"]
