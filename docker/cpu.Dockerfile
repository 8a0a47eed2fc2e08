# mixpo on CPUs: docker build -f docker/cpu.Dockerfile -t mixpo:cpu . && docker run --rm -v "$PWD:/data" mixpo:cpu demo
FROM python:3.11.14-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /opt/mixpo
COPY constraints.txt ./
RUN grep -vE '^(torch|torchvision)==' constraints.txt > pins.txt \
    && pip install --extra-index-url https://download.pytorch.org/whl/cpu torch==2.14.1+cpu torchvision==0.29.1+cpu
COPY . .
RUN pip install -c pins.txt '.[all]' \
    && useradd --create-home --uid 10001 mixpo && mkdir /data && chown mixpo /data

USER 10001
WORKDIR /data
ENTRYPOINT ["mixpo"]
CMD ["--help"]
