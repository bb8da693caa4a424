import pytest
pytestmark = pytest.mark.filterwarnings("ignore:sqlglotrs is deprecated:DeprecationWarning")
from datetime import date, datetime, UTC
import time
def test_it(macro):
    macro.insert("VIXCLS", date(2018,1,2), datetime(2018,1,3,13,tzinfo=UTC), 9.5)
    macro.insert("VIXCLS", date(2018,1,3), datetime(2018,1,4,13,tzinfo=UTC), 9.1)
    t=time.time(); macro.runner.manifest(); print("parse", time.time()-t)
    t=time.time(); macro.runner.manifest(); print("cached", time.time()-t)
    t=time.time()
    r = macro.build()
    print("build", time.time()-t)
    for e in r.all_events:
        if e.is_step_materialization: print(e.asset_key, e.partition, {k:v for k,v in e.materialization.metadata.items()})
        elif e.event_type_value=="ASSET_CHECK_EVALUATION": print(e.event_specific_data.check_name, e.event_specific_data.passed)
    print(macro.mart(), macro.downstream_runs)
    assert r.success
