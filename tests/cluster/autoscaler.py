"""An autoscaler of Ray without a cloud: its nodes are processes on the machine of the head."""

from typing import Any

_MAPPINGS = ("docker", "file_mounts")
_LISTS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)
"""What Ray needs for a cloud, and asks for without one too."""
AUTOSCALER: dict[str, Any] = {
    **{name: {} for name in _MAPPINGS},
    **{name: [] for name in _LISTS},
    "auth": {"ssh_user": "nobody"},
    "file_mounts_sync_continuously": False,
    "cluster_name": "from-zero",
    "max_workers": 2,
    "upscaling_speed": 10.0,
    "idle_timeout_minutes": 0.5,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,  # its nodes have one address
        "disable_node_updaters": True,  # which would log in to them
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 150_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
}
"""From no worker to two, which go again after half a minute without work."""
