# The HTTP service (docs/serving.md). Not built where it was written, which has no Docker.
#   docker build -t fsdino .
#   docker run -p 8000:8000 -e FSDINO_API_KEY="$(openssl rand -hex 24)" -v memories:/memories fsdino
FROM python:3.12.7-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# A user of its own, who owns nothing but the memories and what models are downloaded.
RUN useradd --create-home --uid 1000 fsdino && install -d -o fsdino -g fsdino /memories

WORKDIR /src
COPY setup.cfg setup.py README.md LICENSE ./
COPY fsdino fsdino
COPY recipes recipes
RUN pip install ".[serve,onnx]" && rm -rf /src/*

USER fsdino
WORKDIR /home/fsdino
VOLUME /memories
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]

# Listens on all addresses, so it does not start without FSDINO_API_KEY. Options may follow: --model, --models, ...
ENTRYPOINT ["fsdino", "serve", "--host", "0.0.0.0", "--folder", "/memories"]
