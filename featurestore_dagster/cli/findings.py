"""What `featurestore audit` looks at: each finding says pass or fail, and the mend. Nothing is changed here."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featurestore_dagster.cli.store import outdated
from featurestore_dagster.errors import FeatureStoreError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import RedisStore


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; `mend` is empty when it passed."""

    subject: str
    passed: bool
    detail: str
    mend: str


def findings(settings: Settings, root: Path) -> list[Finding]:
    """All findings, in the order in which a failure is worth mending."""
    store = PostgresStore(settings.postgres, settings.make_clock())
    online = RedisStore(settings.redis, PROJECT)
    checks: list[tuple[str, str, Callable[[], tuple[bool, str]]]] = [
        ("configuration", "see `featurestore info`", lambda: _configuration(settings)),
        ("postgres tables", "`featurestore apply`", lambda: _listed(store.drift(CATALOGUE), "as declared")),
        ("redis", "start it, or check REDIS_*", lambda: (True, f"version {online.ping()}")),
        ("online rows", "materialise the online assets", lambda: _online(store, online, settings)),
        ("feast registry", "`featurestore feast apply`", lambda: _registry(settings, root)),
        ("generated files", "`featurestore generate`", lambda: _listed(outdated(root), "equal to the declarations")),
    ]
    return [_finding(subject, mend, check) for subject, mend, check in checks]


def _finding(subject: str, mend: str, check: Callable[[], tuple[bool, str]]) -> Finding:
    try:
        passed, detail = check()
    except FeatureStoreError as error:
        return Finding(subject, passed=False, detail=str(error), mend=mend)
    return Finding(subject, passed, detail, "" if passed else mend)


def _listed(problems: list[str], none: str) -> tuple[bool, str]:
    return not problems, "; ".join(problems[:10]) or none


def _configuration(settings: Settings) -> tuple[bool, str]:
    clock = settings.make_clock().replayed or "real time"
    return True, f"{settings.services} services, environment {settings.environment}, {clock}"


def _online(store: PostgresStore, online: RedisStore, settings: Settings) -> tuple[bool, str]:
    behind = []
    for view in (view for view in CATALOGUE.views if view.online):
        changes = store.online_changes(view, online.publication_id(view), settings.make_clock().now())
        if not changes.rows.is_empty() or not changes.retracted.is_empty():
            behind.append(f"{view.name}: {changes.rows.height + changes.retracted.height} entities are behind the ledger")
    return _listed(behind, "every publication is in Redis")


def _registry(settings: Settings, root: Path) -> tuple[bool, str]:
    command = [sys.executable, "-W", "ignore", "-c", REGISTRY_DIFFERENCE, str(root / "feature_repo")]
    answer = subprocess.run(command, env=settings.child_environment(), capture_output=True, text=True, check=False)
    if answer.returncode:
        return False, (answer.stderr.strip().splitlines() or ["feast failed without a word"])[-1]
    return _listed(answer.stdout.split("\n")[:-1], "as declared, or not used yet (`featurestore feast apply` fills it)")


REGISTRY_DIFFERENCE = """
import sys
from feast import FeatureStore
from featurestore_dagster.features import CATALOGUE
store = FeatureStore(sys.argv[1])
if not store.list_feature_views():
    sys.exit()
applied = {view.name: {field.name for field in view.features} for view in store.list_feature_views()}
declared = {view.name: set(view.feature_names) for view in CATALOGUE.views if not view.is_superseded}
for name in sorted(applied.keys() | declared.keys()):
    if applied.get(name) != declared.get(name):
        print(f"view {name} is not applied as declared")
services = {service.name for service in store.list_feature_services()}
for name in sorted(services ^ {service.name for service in CATALOGUE.services}):
    print(f"service {name} is not applied as declared")
"""
"""Run in a process of its own: importing Feast takes seconds and writes to standard output."""
