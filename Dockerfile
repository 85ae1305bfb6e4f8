# Name a digest here to pin the base: docker build --build-arg PYTHON=python:3.11-slim@sha256:...
ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS build
WORKDIR /src
RUN python -m venv /opt/imagekeep
# The dependencies first, in a layer that a change of the code leaves alone. A package whose hash is not in the file
# stops the build.
COPY requirements.txt ./
RUN /opt/imagekeep/bin/pip install --no-cache-dir --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY app ./app
RUN /opt/imagekeep/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${PYTHON}
# A number, so that an orchestrator can see that it is not root; and a name, without which the private Postgres makes no
# data folder.
RUN groupadd --gid 10001 imagekeep \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin imagekeep \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=build /opt/imagekeep /opt/imagekeep
ENV PATH=/opt/imagekeep/bin:$PATH \
    DATA_DIR=/data \
    LOG_FORMAT=json \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
# Written to: /data, and /tmp with several workers. The rest may be read-only.
VOLUME /data
EXPOSE 8080
# It asks whether the process is alive, not whether it is ready: who restarts a container because its database is down
# only adds the images in flight to the damage. /readyz is for the load balancer. No proxy of the environment is asked.
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os; asked = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 8080), timeout=5); asked.request('GET', '/healthz'); raise SystemExit(asked.getresponse().status != 200)"]
# Stopping gives 5 seconds of notice and waits for the images in flight, 340 at most: docker stop --time 350.
STOPSIGNAL SIGTERM
# Needs PUBLIC_URL, what permanent URLs begin with.
CMD ["imagekeep", "serve", "--host", "0.0.0.0"]
