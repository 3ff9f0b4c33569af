from protos import session_pb2 as _session_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Status(_message.Message):
    __slots__ = ("federation", "run_id", "state", "round", "rounds", "version", "model", "participants", "history", "refusals", "message")
    class RefusalsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANTS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    federation: str
    run_id: str
    state: str
    round: int
    rounds: int
    version: int
    model: _session_pb2.Blob
    participants: _containers.RepeatedCompositeFieldContainer[ParticipantStatus]
    history: _containers.RepeatedCompositeFieldContainer[RoundStatus]
    refusals: _containers.ScalarMap[str, int]
    message: str
    def __init__(self, federation: _Optional[str] = ..., run_id: _Optional[str] = ..., state: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., version: _Optional[int] = ..., model: _Optional[_Union[_session_pb2.Blob, _Mapping]] = ..., participants: _Optional[_Iterable[_Union[ParticipantStatus, _Mapping]]] = ..., history: _Optional[_Iterable[_Union[RoundStatus, _Mapping]]] = ..., refusals: _Optional[_Mapping[str, int]] = ..., message: _Optional[str] = ...) -> None: ...

class ParticipantStatus(_message.Message):
    __slots__ = ("name", "state", "round", "done", "total", "examples", "silent_s", "certificate_expires")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    round: int
    done: int
    total: int
    examples: int
    silent_s: float
    certificate_expires: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., round: _Optional[int] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., examples: _Optional[int] = ..., silent_s: _Optional[float] = ..., certificate_expires: _Optional[str] = ...) -> None: ...

class RoundStatus(_message.Message):
    __slots__ = ("round", "version", "participants", "seconds", "model", "weighted_loss")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANTS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTED_LOSS_FIELD_NUMBER: _ClassVar[int]
    round: int
    version: int
    participants: _containers.RepeatedCompositeFieldContainer[ParticipantRound]
    seconds: float
    model: _session_pb2.Blob
    weighted_loss: float
    def __init__(self, round: _Optional[int] = ..., version: _Optional[int] = ..., participants: _Optional[_Iterable[_Union[ParticipantRound, _Mapping]]] = ..., seconds: _Optional[float] = ..., model: _Optional[_Union[_session_pb2.Blob, _Mapping]] = ..., weighted_loss: _Optional[float] = ...) -> None: ...

class ParticipantRound(_message.Message):
    __slots__ = ("name", "outcome", "examples", "metrics", "evaluation")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class EvaluationEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    outcome: str
    examples: int
    metrics: _containers.ScalarMap[str, float]
    evaluation: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., outcome: _Optional[str] = ..., examples: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., evaluation: _Optional[_Mapping[str, float]] = ...) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("names", "ttl_s")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    ttl_s: float
    def __init__(self, names: _Optional[_Iterable[str]] = ..., ttl_s: _Optional[float] = ...) -> None: ...

class InviteReply(_message.Message):
    __slots__ = ("invitations",)
    INVITATIONS_FIELD_NUMBER: _ClassVar[int]
    invitations: _containers.RepeatedCompositeFieldContainer[Invitation]
    def __init__(self, invitations: _Optional[_Iterable[_Union[Invitation, _Mapping]]] = ...) -> None: ...

class Invitation(_message.Message):
    __slots__ = ("name", "token", "expires")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    name: str
    token: str
    expires: str
    def __init__(self, name: _Optional[str] = ..., token: _Optional[str] = ..., expires: _Optional[str] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("name", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RevokeReply(_message.Message):
    __slots__ = ("name", "was_connected")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WAS_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    was_connected: bool
    def __init__(self, name: _Optional[str] = ..., was_connected: _Optional[bool] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("version", "initial")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    version: int
    initial: bool
    def __init__(self, version: _Optional[int] = ..., initial: _Optional[bool] = ...) -> None: ...

class ExportReply(_message.Message):
    __slots__ = ("run_id", "version", "model", "plan")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    version: int
    model: _session_pb2.Blob
    plan: bytes
    def __init__(self, run_id: _Optional[str] = ..., version: _Optional[int] = ..., model: _Optional[_Union[_session_pb2.Blob, _Mapping]] = ..., plan: _Optional[bytes] = ...) -> None: ...
