# The image of every FlowStone process: worker, beat, Flower and the command line.
FROM python:3.13-slim

WORKDIR /app
COPY requirements.lock .
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e . \
    && useradd --create-home flowstone \
    && install --directory --owner flowstone /outputs /state

USER flowstone
CMD ["flowstone", "--help"]
