"""Lets nbval read notebooks that nbdev has cleaned."""
import pytest
from nbdev.test import nb_test_cells


def pytest_collection_modifyitems(items):
    tested = {}  # notebook -> ids of the cells that nbdev-test would run
    for item in (i for i in items if hasattr(i, "cell")):
        if item.path not in tested: tested[item.path] = {cell.id for cell in nb_test_cells(item.path)}
        if item.cell.id not in tested[item.path]: item.add_marker(pytest.mark.skip(reason="nbdev-test skips this cell"))
        # nbdev-clean keeps outputs and drops the counts, and nbval takes a cell without a count for one that never ran
        if item.cell.outputs and item.cell.execution_count is None: item.cell.execution_count = 0
