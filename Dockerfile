# Serves the live page, for example as a Hugging Face Space:
#   docker build -t whycam . && docker run --rm -p 7860:7860 whycam
# A public host name must be allowed: docker run … whycam --allow-host demo.example.org
FROM python:3.11-slim
RUN useradd --create-home whycam
WORKDIR /srv/whycam
# Install the CPU build of torch first: pip's default build includes gigabytes of CUDA libraries.
COPY requirements.lock .
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.lock)"
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN PIP_CONSTRAINT=requirements.lock pip install --no-cache-dir ".[app]"
USER whycam
EXPOSE 7860
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/health', timeout=5)"]
# One process with one worker thread. The exec form passes the container's stop signal to it.
ENTRYPOINT ["whycam", "serve", "cifar10-resnet18", "--host", "0.0.0.0", "--port", "7860"]
CMD ["--allow-host", ".hf.space", "--allow-frame", "https://huggingface.co"]
