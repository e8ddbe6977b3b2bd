# A server on CPUs, built in this repository's folder: docker build -t ddim . (docs/serving.md says how it is run.)
FROM python:3.11-slim-bookworm
COPY constraints.txt /tmp/
RUN pip install --no-cache-dir -c /tmp/constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
# What else it may name: studio, for --studio, and scale, for --replicas.
ARG EXTRAS=fast,serve
COPY . /src
RUN pip install --no-cache-dir -c /tmp/constraints.txt "/src[${EXTRAS}]" \
    && rm -rf /src /tmp/constraints.txt \
    && useradd --create-home --uid 1000 ddim
USER 1000
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=5)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["ddim", "serve", "--host", "0.0.0.0", "--log-format", "json"]
CMD ["--model", "emoji", "--allow-anonymous"]
