# The worker's image: production dependencies at their pinned versions and nothing else.
# `--build-arg EXTRAS=bedrock` (or vertex) adds what LLM_PROVIDER needs there.
# Every RUN line is also executed by tests/integration/test_dockerfile.py, so keep them to
# /opt/venv, /src and plain Python where that is possible.

FROM python:3.13-slim AS build
ARG EXTRAS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY constraints.txt ./
# pip works on the virtual environment from outside, so that the image ships without it.
RUN python -m pip install --upgrade --constraint constraints.txt pip \
    && python -m venv --without-pip /opt/venv
# Dependencies first: this layer is built again only when they change, not with every line of code.
COPY pyproject.toml ./
RUN python -c "import os, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = os.environ.get('EXTRAS', '').split(); print(*project['dependencies'], *[d for e in extras for d in project['optional-dependencies'][e]], sep='\n')" > requirements.txt \
    && python -m pip --python /opt/venv/bin/python install --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY daemon daemon
COPY sql sql
COPY examples examples
RUN python -m pip --python /opt/venv/bin/python install --no-deps --build-constraint constraints.txt .

FROM python:3.13-slim
# A fixed number, so that a volume's owner stays the same from image to image.
RUN groupadd --system --gid 10001 fullpass \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/fullpass --shell /usr/sbin/nologin fullpass \
    && install -d -o 10001 -g 10001 /var/lib/fullpass
COPY --from=build /opt/venv /opt/venv
# Two malloc arenas: threads that parse and threads that call give memory back to one pool, which
# is what keeps a 512 MB instance far from its limit.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MALLOC_ARENA_MAX=2 \
    FULLPASS_HOME=/var/lib/fullpass
WORKDIR /var/lib/fullpass
USER fullpass
# A module that cannot be imported fails the build, not the first job that needs it.
RUN /opt/venv/bin/python -c "import importlib, pkgutil, daemon; [importlib.import_module(module.name) for module in pkgutil.walk_packages(daemon.__path__, 'daemon.')]"
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["fullpass", "health"]
CMD ["fullpass", "worker"]
