# Two stages: what builds the environment stays behind.
FROM python:3.11-slim AS build
WORKDIR /app
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY . .
# Editable: dagster.yaml, workspace.yaml, feature_repo and dbt_project lie beside the package, in /app.
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e .

FROM python:3.11-slim
RUN groupadd --gid 10001 featurestore \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin featurestore \
    && install --directory --owner 10001 --group 10001 /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    FEATURESTORE_DATA_FOLDER=/data \
    DBT_TARGET_PATH=/data/dbt/target \
    DBT_LOG_PATH=/data/dbt/logs
WORKDIR /app
VOLUME /data
USER 10001:10001
ENTRYPOINT ["python", "-m", "featurestore_dagster.supervisor"]
CMD ["run", "webserver"]
