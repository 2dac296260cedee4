"""Launcher environments turned into a gloo process group, and DDP on the CPU."""
import os

import pytest
import torch
import torch.distributed as torch_dist
from mmengine.config import Config
from torch import nn

from mmprune_ext.engine import dist
from mmprune_ext.errors import ConfigError

LAUNCHED = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


@pytest.fixture
def cpu_node(monkeypatch):
    """A machine without accelerator, without a launcher's variables, and no process group left behind."""
    monkeypatch.setattr(dist, 'get_device', lambda: 'cpu')
    for names in (LAUNCHED, *dist.RANK_VARIABLES.values(), ('SLURM_NODELIST', 'SLURM_JOB_ID')):
        for name in names:
            # Set before it is deleted, so that what the code sets is undone after the test.
            monkeypatch.setenv(name, '')
            monkeypatch.delenv(name)
    yield monkeypatch
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def one_slurm_task(monkeypatch, job_id: str) -> None:
    for name, value in {'SLURM_PROCID': '0', 'SLURM_NTASKS': '1', 'SLURM_LOCALID': '0', 'SLURM_NODELIST': 'localhost',
                        'SLURM_JOB_ID': job_id}.items():
        monkeypatch.setenv(name, value)


def test_slurm_task_gets_gloo_and_torch_variables(cpu_node):
    one_slurm_task(cpu_node, job_id='41234')
    cfg = Config({'env_cfg': {'dist_cfg': {'backend': 'nccl', 'timeout': 60}, 'cudnn_benchmark': True}})
    ready = dist.init_dist(cfg, 'slurm')
    assert torch_dist.get_backend() == 'gloo'
    assert {name: os.environ[name] for name in LAUNCHED} == {
        'RANK': '0', 'WORLD_SIZE': '1', 'LOCAL_RANK': '0', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': '21234'}
    assert ready.launcher == 'slurm'
    assert ready.env_cfg.to_dict() == {'dist_cfg': {'backend': 'gloo', 'timeout': 60}, 'cudnn_benchmark': True}
    assert 'launcher' not in cfg
    assert cfg.env_cfg.dist_cfg.backend == 'nccl', 'the caller keeps its config'


def test_a_port_of_the_user_is_kept(cpu_node):
    one_slurm_task(cpu_node, job_id='7')
    port = str(dist.port_of_job('4321'))
    cpu_node.setenv('MASTER_PORT', port)
    dist.init_dist(Config({}), 'slurm')
    assert os.environ['MASTER_PORT'] == port


def test_accelerator_is_left_to_mmengine(cpu_node):
    one_slurm_task(cpu_node, job_id='7')
    cpu_node.setattr(dist, 'get_device', lambda: 'cuda')
    ready = dist.init_dist(Config({}), 'slurm')
    assert not torch_dist.is_initialized()
    assert ready.to_dict() == {'launcher': 'slurm'}
    assert os.environ['MASTER_PORT'] == '20007'


def test_no_launcher_starts_nothing(cpu_node):
    assert dist.init_dist(Config({'a': 1}), 'none').to_dict() == {'a': 1, 'launcher': 'none'}
    assert not torch_dist.is_initialized()


@pytest.mark.parametrize(('launcher', 'text'), [
    ('slurm', 'SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID not set in the environment; start this program by srun'),
    ('pytorch', 'RANK, WORLD_SIZE, LOCAL_RANK not set'),
    ('mpi', 'start this program by mpirun'),
    ('pbs', "launcher 'pbs' is unknown; valid are none, pytorch, slurm, mpi"),
])
def test_wrong_launcher_is_an_error_of_the_user(cpu_node, launcher, text):
    with pytest.raises(ConfigError, match=text):
        dist.init_dist(Config({}), launcher)


def test_data_parallel_on_the_cpu(cpu_node):
    one_slurm_task(cpu_node, job_id='8')
    dist.init_dist(Config({}), 'slurm')
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.Flatten(), nn.Linear(4, 1))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = dist.AnyDeviceDataParallel(model, device_ids=[0])
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in wrapped.modules())
    assert all(torch.equal(wrapped.module.state_dict()[key], value) for key, value in state.items())
    wrapped(torch.randn(2, 3, 1, 1)).sum().backward()
    assert wrapped.module[0].weight.grad is not None


@pytest.mark.parametrize(('own', 'expected'), [
    (None, {'type': 'AnyDeviceDataParallel', 'find_unused_parameters': True}),
    ({'find_unused_parameters': False, 'static_graph': True},
     {'type': 'AnyDeviceDataParallel', 'find_unused_parameters': False, 'static_graph': True}),
    ({'type': 'MMSeparateDistributedDataParallel'},
     {'type': 'MMSeparateDistributedDataParallel', 'device_ids': None}),
])
def test_wrapper_of_the_config_is_respected(own, expected):
    cfg = Config({'find_unused_parameters': True, 'model_wrapper_cfg': own})
    assert dist.cpu_wrapper(cfg) == expected


@pytest.mark.parametrize(('node_list', 'host'), [('vm', 'vm'), ('a1,a2', 'a1')])
def test_first_host_without_scontrol(node_list, host):
    assert dist.first_host(node_list) == host
