# docker build -t esgd_tf .                            CPU
# docker build -t esgd_tf --build-arg BASE=tensorflow/tensorflow:2.21.0-gpu --build-arg EXTRAS=commands .
# docker run --rm -it esgd_tf train --preset quickstart
#
# BASE is an image with Python 3.11 or later. Where it has TensorFlow already, EXTRAS=commands adds
# everything else; `commands,cpu` and `all` bring TensorFlow along.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG EXTRAS=commands,cpu
WORKDIR /src
COPY . .
RUN python3 -m pip install --no-cache-dir ".[${EXTRAS}]" && rm -rf build
WORKDIR /work
ENTRYPOINT ["esgd-tf"]
CMD ["--help"]
