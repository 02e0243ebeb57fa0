"""Connecting to Ray: to a cluster, or to one that is started on this machine for the run.

Ray waits for minutes, and says little, where nothing answers, where the driver is on no machine of
the cluster, and for machines that never come. All of that is found out before it is asked.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import warnings

from pipeline.problems import ConfigError, Problem

CONNECT_SECONDS = 3.0
"""How long a machine may take to accept a connection."""

ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")

FORMS = "`auto`, `HOST:6379` from a machine of the cluster, or `ray://HOST:10001` from any other"


def is_address(text: str) -> bool:
    """Whether it is one that a cluster can have."""
    found = ADDRESS.fullmatch(text)
    return text == "auto" or (found is not None and 0 < int(found["port"]) < 65536)


def connect(address: str | None) -> None:
    """Connect to a cluster, or start one here, unless this process has. Raises `ConfigError`.

    Best before anything has threads: Ray makes processes by forking.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    import ray.data
    from ray.exceptions import RayError

    if ray.is_initialized():
        return
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"ray\.")
    try:
        found = "local" if address is None else _reachable(address)
        # What workers write stays in Ray's logs on their machines: here it would be among the results.
        ray.init(address=found, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, ImportError, RayError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300].removesuffix(".")
        if address is None:
            raise _unusable(f"Ray can't be started here: {reason}.", "") from None
        raise _unusable(f"Ray can't be reached at `{address}`: {reason}.", f"Expected {FORMS}.") from None


def require_room(*, cutters: int, embedders: int, cpus: float, gpus: float) -> None:
    """Check that so many workers fit into the cluster, were it idle. Raises `ConfigError`."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores, devices = ([node.get(name, 0.0) for node in nodes] for name in ("CPU", "GPU"))
    by_cores = [_times(has, cpus) for has in cores]
    if gpus:
        # A worker has shares of one GPU, or whole ones.
        by_gpus = [int(has) * _times(1, gpus) if gpus < 1 else _times(has, gpus) for has in devices]
        if sum(map(min, by_cores, by_gpus)) < embedders:
            message = f"Ray has {sum(devices):g} GPUs, too few for `embedders={embedders}` with {gpus:g} each"
            hint = "Take fewer or less, or run `ray start` with `--num-gpus` where Ray sees none."
            raise ConfigError([Problem("ingest.gpus", f"{message}, on machines with cores for them.", hint)])
    if sum(by_cores) < (workers := cutters + embedders):
        message = f"Ray has {sum(cores):g} cores, too few for {workers} workers with {cpus:g} each."
        hint = "Take fewer cutters or embedders, or less of `rag.ingest.cpus`, or add machines first."
        raise ConfigError([Problem("ingest.embedders", message, hint)])


def _times(has: float, each: float) -> int:
    return int(has / each + 1e-6)


def _reachable(address: str) -> str:
    """The address, once it is known that a connection can work. Raises `ConfigError`."""
    if address == "auto":
        address = _automatic()
    if (found := ADDRESS.fullmatch(address)) is None:
        return address  # machines of several clusters: Ray takes the one that it was started for last
    host, port = found["host"].strip("[]"), int(found["port"])
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        reason = "it does not answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise _unusable(f"nothing can be reached at `{address}`: {reason}.", f"Expected {FORMS}.") from None
    if found["client"]:
        return address
    own = _own_clusters()
    if not any(_same(host, port, one) for one in own):
        here, first = "No Ray runs here.", f"Run `ray start --address={address}` here first"
        if own:
            here, first = f"It is one of `{own[0]}`.", "Expected `auto`"
        message = f"this machine is none of a cluster at `{address}`. {here}"
        raise _unusable(message, f"{first}, or `ray://{found['host']}:10001`.")
    return address


def _automatic() -> str:
    """What `auto` stands for. Raises `ConfigError`."""
    told = os.environ.get("RAY_ADDRESS")
    if told and not is_address(told):
        raise _unusable(f"`RAY_ADDRESS` is `{told[:200]}`, which is no address.", f"Expected {FORMS}.")
    if told and told != "auto":
        return told
    own = _own_clusters()
    if not own:
        raise _unusable("no Ray runs on this machine.", "Run `ray start` first, or give `ray://HOST:10001`.")
    return own[0] if len(own) == 1 else "auto"


def _own_clusters() -> list[str]:
    """Addresses of the clusters that this machine is one of, by the processes that run on it."""
    from ray._private.services import find_gcs_addresses

    return sorted(find_gcs_addresses())


def _same(host: str, port: int, other: str) -> bool:
    """Whether the host and port are those of a cluster that this machine is one of."""
    name, _, at = other.rpartition(":")
    if at != str(port):
        return False
    places = _addresses(host)
    return not places.isdisjoint(_addresses(name.strip("[]"))) or any(
        ipaddress.ip_address(place.partition("%")[0]).is_loopback for place in places
    )


def _addresses(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def _unusable(message: str, hint: str) -> ConfigError:
    return ConfigError([Problem("ingest.address", message, hint)])
