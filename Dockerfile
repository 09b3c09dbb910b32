# camp serve in a container. The bundle, the index and the keys are mounted: see docs/serving.md.
#   docker build --tag camp-serve .                          on a CPU
#   docker build --target nvidia --tag camp-serve-nvidia .   on an NVIDIA GPU
# No image was built where this project is made, which has no Docker.

FROM scratch AS source
COPY LICENSE README.md constraints.txt pyproject.toml setup.py /
COPY camp_sdk /camp_sdk
COPY export /export
COPY runtime /runtime

FROM python:3.12-slim AS build-cpu
WORKDIR /src
COPY --from=source / ./
RUN python -m venv /opt/camp \
    && /opt/camp/bin/pip install --no-cache-dir --constraint constraints.txt ".[cpu,openvino,server]"

# ONNX Runtime finds CUDA and cuDNN where this image has them.
FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04 AS python-nvidia
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM python-nvidia AS build-nvidia
WORKDIR /src
COPY --from=source / ./
RUN python3 -m venv /opt/camp \
    && /opt/camp/bin/pip install --no-cache-dir --constraint constraints.txt ".[gpu,server]"

FROM python-nvidia AS nvidia
COPY --from=build-nvidia /opt/camp /opt/camp
ENV PATH=/opt/camp/bin:$PATH CAMP_HOST=0.0.0.0 CAMP_PORT=8000 CAMP_LOG_FORMAT=json XDG_CACHE_HOME=/tmp/cache
RUN useradd --uid 10001 --no-create-home camp
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"CAMP_PORT\"]}/health', timeout=4)"]
CMD ["camp", "serve"]

# Last, so that it is what is built without a target.
FROM python:3.12-slim AS cpu
COPY --from=build-cpu /opt/camp /opt/camp
ENV PATH=/opt/camp/bin:$PATH CAMP_HOST=0.0.0.0 CAMP_PORT=8000 CAMP_LOG_FORMAT=json XDG_CACHE_HOME=/tmp/cache
RUN useradd --uid 10001 --no-create-home camp
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"CAMP_PORT\"]}/health', timeout=4)"]
CMD ["camp", "serve"]
