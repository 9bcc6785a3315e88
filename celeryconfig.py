"""How Celery runs FlowStone: JSON only, late acknowledgements, one queue for each kind of work."""

from celery.schedules import crontab

from flowstone.canvas import as_queue
from flowstone.limits import KILL_LATER
from flowstone.messages import (
    CONTINUE_AFTER_APPROVAL,
    CONTINUE_AFTER_SIGNAL,
    COORDINATE,
    NOTIFY,
    PRUNE,
    RECONCILE,
    STEP,
    SWEEP,
)
from flowstone.priority import CONTROL, LEVELS
from flowstone.queues import CHECKPOINTS_QUEUE, CONTROL_QUEUE, REDIS, all_queues, message_priority
from flowstone.settings import load_settings

_settings = load_settings()

broker_url = _settings.broker
result_backend = _settings.results
broker_connection_retry_on_startup = True
# RabbitMQ closes the channel of a worker that does not acknowledge a message in time, which only
# its operator can say (consumer_timeout). By default, Celery ends then.
broker_channel_error_retry = True

# Nothing but JSON is read or written; a message in another form is refused.
accept_content = ["json"]
result_accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"

# How long a message may stay unacknowledged must outlast any task.
_patience = int(_settings.time_limit) + 600
task_queues = [as_queue(name) for name in all_queues(_settings.queues)]
task_default_queue = "assets"
task_create_missing_queues = False
# What keeps the runs going comes before all steps; those bring their priority with them.
_control = {"queue": CONTROL_QUEUE, "priority": message_priority(CONTROL, broker_url)}
_checkpoint = {"queue": CHECKPOINTS_QUEUE}
task_routes = {
    **dict.fromkeys([COORDINATE, RECONCILE, PRUNE, SWEEP], _control),
    CONTINUE_AFTER_APPROVAL: _checkpoint,
    CONTINUE_AFTER_SIGNAL: _checkpoint,
    # Who is told of approvals may hang, and must not keep runs from going on.
    NOTIFY: {"queue": CHECKPOINTS_QUEUE, "priority": message_priority(CONTROL, broker_url)},
    STEP: {},
}

# A message is acknowledged when its step has been committed, so a crash gives it back; the
# claim in the ledger refuses the copies that this can make.
task_acks_late = True
# The ledger counts the deaths of workers and dispatches anew: Celery alone would do so for ever.
task_reject_on_worker_lost = False
# A worker that keeps steps in reserve may hold them back from one that is idle; where steps take
# milliseconds, its processes would wait for the broker without a reserve.
worker_prefetch_multiplier = _settings.prefetch

# A pass takes a moment, and beat sends for the next one soon: one that hangs must not take one
# process after the other.
_of_a_pass = min(60, _settings.soft_time_limit)
# Celery asks none of the steps to stop: FlowStone does so itself, as Celery's exception may come
# while the outcome is recorded. It kills what does not, a moment after the ledger's own limit.
task_time_limit = _settings.time_limit
_of_a_step = {"time_limit": _settings.time_limit + KILL_LATER}
task_annotations = {
    STEP: _of_a_step,
    CONTINUE_AFTER_APPROVAL: _of_a_step,
    CONTINUE_AFTER_SIGNAL: _of_a_step,
    COORDINATE: {"soft_time_limit": _settings.soft_time_limit},
    RECONCILE: {
        "soft_time_limit": _of_a_pass,
        "time_limit": min(_of_a_pass + 30, _settings.time_limit),
    },
    # Shorter than the lease of what it tells, so that no other one tells that meanwhile.
    NOTIFY: {
        "soft_time_limit": min(50, _settings.soft_time_limit),
        "time_limit": min(80, _settings.time_limit),
    },
    PRUNE: {"soft_time_limit": _settings.soft_time_limit},
    SWEEP: {"soft_time_limit": _settings.soft_time_limit},
}
broker_transport_options = {
    # After which Redis gives a message out again.
    "visibility_timeout": _patience,
    # A server that does not answer must not be waited for without end. It is longer than a worker
    # waits for a message (10 s).
    **({"socket_timeout": 30, "socket_keepalive": True} if broker_url.startswith(REDIS) else {}),
    # Redis has a list for each, and looks into those of all queues, one priority after the other.
    "priority_steps": list(range(LEVELS)),
}
result_backend_transport_options = {"visibility_timeout": _patience}
redis_socket_timeout = 30.0

# A broker that restarts is worth a second; a longer absence is left to the reconciler.
task_publish_retry_policy = {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.3}

# Values are read through the ledger. Celery's results only count the parts of chords; they
# must outlast the slowest header, for a chord forgets those that have expired.
task_ignore_result = True
result_expires = int(_settings.time_limit) + 24 * 3600

# What Flower shows. Not the event "sent": it bears the name of the task, and would hide that of
# the asset and its partition, which all other events bear.
worker_send_task_events = True
task_send_sent_event = False
task_track_started = True

enable_utc = True
timezone = "UTC"
beat_schedule = {
    "flowstone-reconcile": {
        "task": RECONCILE,
        "schedule": _settings.reconcile_seconds,
        "options": {"queue": "control", "expires": 60, "ignore_result": True},
    },
    "flowstone-notify": {
        "task": NOTIFY,
        "schedule": _settings.reconcile_seconds,
        "options": {"queue": "checkpoints", "expires": 60, "ignore_result": True},
    },
    # At a time of the day: an interval would begin anew whenever beat is restarted.
    "flowstone-prune": {
        "task": PRUNE,
        "schedule": crontab(hour=3, minute=30),
        "options": {"queue": "control", "expires": 3600, "ignore_result": True},
    },
    # Before that: what is swept is found through the rows of attempts.
    "flowstone-sweep": {
        "task": SWEEP,
        "schedule": crontab(hour=3, minute=0),
        "options": {"queue": "control", "expires": 3600, "ignore_result": True},
    },
}
