# The writer and the command line; the C extensions are built in a stage of their own.
FROM python:3.13.7-bookworm AS build
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY ringlog ringlog
COPY schemas schemas
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13.7-slim-bookworm
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[metrics]" && rm -r /wheels \
    && useradd --uid 1000 --user-group --no-create-home ringlog \
    # Named volumes take owner and mode from here.
    && install -d -o ringlog -g ringlog -m 0700 /run/ringlog /var/lib/ringlog /var/lib/ringlog/spool
USER ringlog
ENTRYPOINT ["ringlog"]
CMD ["writer"]
