
import sys; sys.path.insert(0,"/tmp"); import tr

import flowstone
import pytest
from broker_view import take
from celery import Celery
from flowstone.canvas import Publisher
from flowstone.coordinator import coordinate
from flowstone.runtime import Runtime
from redis import Redis
import worker_assets as W

@pytest.mark.parametrize(("t","p"), [(W.link(30), flowstone.UNPARTITIONED), ("tail",flowstone.UNPARTITIONED), ("month","2013-01"), (W.longest("j",16), W.LONGEST_KEY)])
def test_x(here: Runtime, broker: Redis, celery_setup_app: Celery, t,p) -> None:
    h = flowstone.materialize_all(t, partition=p)
    coordinate(here, h.id, Publisher(celery_setup_app).publish)
    print(h.explain())
    m = take(broker)
    print(m[0].embed if len(m)<4 else "")
    print(m[0].headers if len(m)<4 else "")
    print([(x.headers["task"], x.argument_bytes, len(x.raw), len(x.rest)) for x in m])
    assert 0
