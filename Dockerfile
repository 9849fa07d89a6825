# Two images from one file: `--target frontend` (no torch) and `--target engine` (everything).
# Layers go from what seldom changes (torch) to what changes daily (our code), so that an update pulls little.
ARG BASE_IMAGE=python:3.12-slim-bookworm

# What both images are built on: an empty virtual environment, the user, and the places that volumes are mounted on.
# A named volume takes owner and mode from the directory in the image: the sockets' is private, as the engine demands.
FROM ${BASE_IMAGE} AS base
ENV PATH=/opt/penstock/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    HF_HOME=/models/huggingface \
    XDG_CACHE_HOME=/models/cache
RUN groupadd --gid 10001 penstock \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin penstock \
    && install -d -o penstock -g penstock -m 0700 /run/penstock \
    && install -d -o penstock -g penstock -m 0755 /models \
    && python3 -m venv --without-pip /opt/penstock

# The wheel, installed, then parted in two: the demo model's weights, which seldom change and only the engine reads, and the rest.
# Bytecode is written here because the images run read-only; it does not depend on the files' times.
FROM base AS code
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY penstock penstock
COPY engine engine
COPY frontend frontend
COPY ipc ipc
COPY kernels kernels
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /dist . \
    && pip --python /opt/penstock/bin/python install --no-deps --no-index --no-compile /dist/*.whl \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/penstock/lib/python3.*/site-packages/penstock \
    && package=$(echo /opt/penstock/lib/python3.*/site-packages/penstock) \
    && mkdir -p "/parts/code$(dirname "$package")" "/parts/weights$package/demo_model" /parts/code/opt/penstock/bin \
    && mv "$package"/demo_model/*.safetensors "/parts/weights$package/demo_model/" \
    && mv "$package" "$package"-*.dist-info "/parts/code$(dirname "$package")/" \
    && mv /opt/penstock/bin/penstock /parts/code/opt/penstock/bin/

FROM base AS frontend
COPY requirements/frontend.txt /opt/penstock/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/penstock/bin/python install --require-hashes --only-binary :all: -r /opt/penstock/requirements.txt
COPY --from=code /parts/code/ /
USER penstock
EXPOSE 8000
ENTRYPOINT ["penstock"]
CMD ["frontend", "--socket-dir", "/run/penstock", "--host", "0.0.0.0"]

FROM base AS engine
# Triton builds a small launcher for each kernel with a C compiler, on first use.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
# Another index for torch alone: without one the default index gives the build for CUDA.
ARG TORCH_INDEX_URL
COPY constraints.txt /opt/penstock/constraints.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/penstock/bin/python install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} \
    --only-binary :all: --constraint /opt/penstock/constraints.txt torch triton
COPY requirements/engine.txt /opt/penstock/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/penstock/bin/python install --require-hashes --only-binary :all: -r /opt/penstock/requirements.txt
COPY --from=code /parts/weights/ /
COPY --from=code /parts/code/ /
ENV TRITON_CACHE_DIR=/models/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/models/cache/inductor \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER penstock
ENTRYPOINT ["penstock"]
CMD ["engine", "--socket-dir", "/run/penstock"]
