# Two images: `operator`, small and without torch, and `trainer`. `make images` builds both.
# BASE has Python 3.11 or newer with pip, and for GPUs whatever your torch wants. WHEELS is a folder of this context with
# every file that requirements/ names, for a build without a package index: see docs/install.md.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
USER 0
ARG WHEELS=requirements
COPY ${WHEELS} /build/wheels
# pip stands beside the environment, not in it
RUN python -m venv /build/pip \
    && python -m venv --without-pip /opt/venv \
    && echo /opt/finetune > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/finetune.pth" \
    && if [ "${WHEELS}" != requirements ]; then printf '[install]\nno-index = true\nfind-links = /build/wheels\n' > /etc/pip.conf; fi
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

FROM build AS operator-build
COPY requirements/operator.txt /build/requirements.txt
RUN /build/pip/bin/pip --python /opt/venv install --require-hashes --requirement /build/requirements.txt
COPY api operator /opt/finetune/
# containers cannot write, so what is not compiled here is compiled at every start
RUN chmod -R a+rX /opt/finetune \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune

FROM ${BASE} AS operator
COPY --from=operator-build /opt /opt
COPY LICENSE /licenses/
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /
ENTRYPOINT []
CMD ["python", "-m", "finetune_operator"]

FROM build AS trainer-build
COPY requirements/trainer.txt /build/requirements.txt
RUN /build/pip/bin/pip --python /opt/venv install --require-hashes --requirement /build/requirements.txt
COPY api trainer /opt/finetune/
# llama.cpp's converter, for the form gguf; a build without a package index goes without that form
RUN if [ "${WHEELS}" = requirements ]; then \
      /build/pip/bin/python /opt/finetune/finetune_trainer/export/gguf/llama_cpp.py \
      && mkdir -p /opt/venv/share && cp -r /build/pip/share/finetune-llama.cpp-* /opt/venv/share/; \
    fi
RUN chmod -R a+rX /opt/finetune \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/finetune \
    && printf '#!/opt/venv/bin/python\nimport sys\nfrom finetune_trainer.commands.main import main\nsys.exit(main())\n' > /opt/venv/bin/finetune \
    && chmod 755 /opt/venv/bin/finetune

FROM ${BASE} AS trainer
COPY --from=trainer-build /opt /opt
COPY LICENSE /licenses/
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 0
# torch asks for the name of its user, and fails where there is none
RUN grep -q '^[^:]*:[^:]*:1000:' /etc/passwd || echo 'trainer:x:1000:1000::/tmp:/bin/sh' >> /etc/passwd
USER 1000:1000
WORKDIR /
ENTRYPOINT []
CMD ["finetune", "--help"]
