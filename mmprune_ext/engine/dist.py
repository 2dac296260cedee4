"""Distributed runs that also work where there is no GPU.

mmengine starts its processes for CUDA only: its launchers call `torch.cuda.set_device`, and its
Runner hands `device_ids` to DDP, which refuses them for a model on the CPU. On a machine with an
accelerator everything here is left to mmengine.
"""
import atexit
import copy
import os
import subprocess
import time
from datetime import timedelta

import torch.distributed as torch_dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from mmprune_ext.errors import ConfigError

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
# What each launcher tells a process: rank, number of processes, rank on this node.
RANK_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
STARTED_BY = {'pytorch': 'torchrun (tools/dist_train.sh)', 'slurm': 'srun (tools/slurm_train.sh)', 'mpi': 'mpirun'}


@MODEL_WRAPPERS.register_module()
class AnyDeviceDataParallel(MMDistributedDataParallel):
    """mmengine's DDP for a model on any device.

    On the CPU it takes no `device_ids`, and SyncBatchNorm, which torch runs on accelerators only,
    becomes BatchNorm with the statistics of each process alone.

    Args:
        module: the model, already on its device.
        device_ids: devices of an accelerator; left out when the model is on the CPU.
        broadcast_buffers: as in torch's DDP. False like the Runner's own choice.
        find_unused_parameters: as in torch's DDP.
        static_graph: as in torch's DDP.
        detect_anomalous_params: as in mmengine's `MMDistributedDataParallel`.
    """

    def __init__(self,
                 module: nn.Module,
                 device_ids: list[int] | None = None,
                 broadcast_buffers: bool = False,
                 find_unused_parameters: bool = False,
                 static_graph: bool = False,
                 detect_anomalous_params: bool = False) -> None:
        if next(module.parameters()).device.type == 'cpu':
            device_ids = None
            if any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules()):
                print_log('SyncBatchNorm does not run on the CPU: every process uses its own batch statistics',
                          logger='current')
                module = revert_sync_batchnorm(module)
        super().__init__(module=module, detect_anomalous_params=detect_anomalous_params, device_ids=device_ids,
                         broadcast_buffers=broadcast_buffers, find_unused_parameters=find_unused_parameters,
                         static_graph=static_graph)


def init_dist(cfg: Config, launcher: str) -> Config:
    """Make a config ready for a launcher, and start the process group where mmengine cannot.

    Call it once, before anything distributed and before `Runner.from_cfg`; the Runner sees that the
    group exists and goes on with it.

    Args:
        cfg: config of the run; not changed.
        launcher: one of `none`, `pytorch`, `slurm`, `mpi`.

    Returns:
        A copy of the config with `launcher` set and, on the CPU, gloo as backend and a DDP wrapper
        that takes a model on the CPU.

    Raises:
        ConfigError: unknown launcher, or a process that this launcher did not start.
    """
    if launcher not in LAUNCHERS:
        raise ConfigError(f"launcher {launcher!r} is unknown; valid are {', '.join(LAUNCHERS)}")
    cfg = copy.deepcopy(cfg)
    cfg.launcher = launcher
    if launcher == 'none':
        return cfg
    check_started_by(launcher)
    if launcher == 'slurm':
        # Two jobs that share a node must not meet on torch's default port.
        os.environ.setdefault('MASTER_PORT', str(port_of_job(os.environ.get('SLURM_JOB_ID', '0'))))
    if get_device() != 'cpu':
        return cfg
    env_cfg = cfg.get('env_cfg') or {}
    dist_cfg = {**env_cfg.get('dist_cfg', {}), 'backend': 'gloo'}
    cfg.env_cfg = {**env_cfg, 'dist_cfg': dist_cfg}
    cfg.model_wrapper_cfg = cpu_wrapper(cfg)
    if not is_distributed():
        start_gloo(launcher, timeout_s=dist_cfg.get('timeout'))
    return cfg


def check_started_by(launcher: str) -> None:
    """Raise ConfigError unless the launcher's variables are there."""
    missing = [name for name in RANK_VARIABLES[launcher] if name not in os.environ]
    if missing:
        raise ConfigError(f"launcher {launcher!r}: {', '.join(missing)} not set in the environment; "
                          f'start this program by {STARTED_BY[launcher]}, or leave --launcher out')


def port_of_job(job_id: str) -> int:
    """Return a port in [20000, 30000) that all processes of a Slurm job agree on."""
    return 20000 + int(job_id) % 10000


def cpu_wrapper(cfg: Config) -> dict:
    """Return the `model_wrapper_cfg` of a run on the CPU, from the config's own if it has one."""
    own = cfg.get('model_wrapper_cfg')
    if own and own.get('type', 'MMDistributedDataParallel') != 'MMDistributedDataParallel':
        return {**own, 'device_ids': None}
    wrapper = {'find_unused_parameters': cfg.get('find_unused_parameters', False), **(own or {})}
    return {**wrapper, 'type': 'AnyDeviceDataParallel'}


def start_gloo(launcher: str, timeout_s: float | None = None) -> None:
    """Start torch's process group with gloo from the launcher's variables.

    Args:
        launcher: one of `pytorch`, `slurm`, `mpi`.
        timeout_s: seconds that a collective may take; None is torch's default.
    """
    rank, world_size, local_rank = (os.environ[name] for name in RANK_VARIABLES[launcher])
    os.environ.update(RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK=local_rank)
    if launcher == 'slurm':
        os.environ.setdefault('MASTER_ADDR', first_host(os.environ['SLURM_NODELIST']))
    # mmengine's own rule for mpirun on one node.
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    options = {} if timeout_s is None else {'timeout': timedelta(seconds=timeout_s)}
    torch_dist.init_process_group(backend='gloo', **options)
    atexit.register(stop)


def stop() -> None:
    """End the process group, so that the process can end.

    A thread of gloo frees the tensors of a finished collective, for which it needs Python; when the
    interpreter is gone by then, it aborts the process ("terminate called without an active
    exception", seen in one of ten runs), and Slurm fails a job that has done its work. Nothing tells
    that those threads are through, so they get time in which Python is theirs.
    """
    time.sleep(0.3)
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def first_host(node_list: str) -> str:
    """Return the first host of a Slurm node list such as `node[3-5,9]`."""
    if '[' not in node_list:
        return node_list.split(',')[0]
    hosts = subprocess.run(['scontrol', 'show', 'hostnames', node_list], capture_output=True, text=True, check=True)
    return hosts.stdout.split()[0]
