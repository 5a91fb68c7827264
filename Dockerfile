# The server's image. Works with Docker's classic builder and with BuildKit.
#
#   docker build -t tome-serve .                                                            PyPI's torch, with CUDA
#   docker build -t tome-serve:cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#   docker build -t tome-serve:video --build-arg EXTRAS=video .                             deploy/README.md: its licences
#
# Three parts that change at different paces, slowest first: the dependencies (gigabytes, rebuilt when their list or a
# pin changes), the project's own files (seconds), the image's settings.
ARG BASE=python:3.11-slim-bookworm

# The list of dependencies alone, so that another edit of pyproject.toml leaves their layer as it is.
FROM ${BASE} AS requirements
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# Names of extras beside audio, separated by spaces.
ARG EXTRAS=
RUN ["python", "-c", "import os, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = ['audio', *os.environ.get('EXTRAS', '').split()]; print(*project['dependencies'], *(line for extra in extras for line in project['optional-dependencies'][extra]), sep='\\n', file=open('requirements.txt', 'w'))"]
# Their layer is kept by the files' modes too, which follow the umask of whoever checked them out.
RUN chmod 0644 requirements.txt constraints.txt

FROM ${BASE} AS dependencies
# /cache is for downloaded weights; a volume that is mounted there for the first time takes over its owner.
RUN groupadd --gid 10001 tome \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /cache --shell /usr/sbin/nologin tome \
    && install --directory --owner=10001 --group=10001 --mode=0750 /cache \
    && python -m venv --without-pip /opt/venv
COPY --from=requirements /src/requirements.txt /src/constraints.txt /opt/
# One or more package indexes beside PyPI, separated by spaces; where it has the pinned torch as `+cpu`, pip prefers that.
ARG TORCH_INDEX=
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" python -m pip --python /opt/venv/bin/python --no-cache-dir install \
    --only-binary :all: --constraint /opt/constraints.txt --requirement /opt/requirements.txt
# A torchvision made for another torch shows here, not when the server starts.
RUN ["/opt/venv/bin/python", "-B", "-c", "import timm, torch, torchvision; print(torch.__version__, torchvision.__version__)"]
# Triton, which comes with a torch that has CUDA, compiles what launches its kernels when they first run.
RUN if [ -n "$(find /opt/venv -maxdepth 5 -name triton)" ]; then apt-get update -qq \
    && apt-get install --yes -qq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; fi

# Build tools stay in this stage; the image takes only what is in /project. Without a compiler the wheel would be built
# too, but lack the CPU kernels.
FROM dependencies AS project
RUN apt-get update -qq && apt-get install --yes -qq --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv --without-pip /opt/build \
    && python -m pip --python /opt/build/bin/python --no-cache-dir install 'setuptools>=77'
WORKDIR /src
COPY . .
RUN python -m pip --python /opt/build/bin/python wheel --quiet --no-deps --no-build-isolation --wheel-dir /dist . \
    && python -m pip --python /opt/venv/bin/python install --quiet --no-deps --no-index --prefix /project /dist/*.whl

FROM dependencies
LABEL org.opencontainers.image.title="tome-serve" \
    org.opencontainers.image.description="An HTTP server for Vision Transformers accelerated by Token Merging" \
    org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-SA-4.0"
COPY --from=project /project /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    TOME_HOST=0.0.0.0 \
    TOME_PORT=8000
USER 10001:10001
WORKDIR /cache
VOLUME /cache
EXPOSE 8000
# /readyz rather than /healthz: "healthy" should mean that requests are answered. Docker itself restarts nothing for it;
# a server that has given up its engine exits, and the restart policy sees that. The start period is TOME_START_TIMEOUT.
# It follows TOME_HOST, TOME_PORT and TOME_UDS of the environment, not flags after the image's name.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 CMD ["python", "-P", "-m", "server.commands.health", "/readyz"]
ENTRYPOINT ["tome-serve"]
CMD ["serve"]
