"""One thread: these tests compute little, and threads that wait for each other take longest."""
import pytest
import torch


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
