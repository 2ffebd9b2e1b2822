"""`import copyscope as cs`: these names and no others, each there, and none of it loaded before it is used."""

import subprocess
import sys

import copyscope

OBJECTS = {
    "RunConfig",
    "open_run",
    "load_hooked",
    "copying_test",
    "ablate_heads",
    "sweep_heads",
    "score_heads",
    "copying_accuracy",
    "formation_steps",
    "formation_map",
    "prompt_widget",
}
COMMANDS = {
    "demo",
    "train",
    "fork",
    "zoom",
    "average",
    "verify",
    "push",
    "score",
    "tasks",
    "ablate",
    "map",
    "claims",
    "sweep",
    "study",
    "report",
    "explore",
    "info",
    "revisions",
}
MEASURES = {
    "induction_attention",
    "prefix_matching_sum",
    "prefix_matching_mean",
    "previous_token",
    "duplicate_token",
    "eigenvalue_positivity",
    "copying_score",
    "k_composition",
    "icl_score",
}
# What Python has anyway, the libraries that lazy_loader needs, and our own first file.
ALLOWED = {"copyscope", "lazy_loader"}
PROGRAM = """
import sys
before = set(sys.modules)
import copyscope as cs
dir(cs)
loaded = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(*sorted(loaded), "copyscope.training" in sys.modules)
"""


def test_the_front_door_shows_these_names_and_nothing_else() -> None:
    assert set(dir(copyscope)) == OBJECTS | COMMANDS | MEASURES


def test_every_name_is_there_and_is_called_so() -> None:
    for name in dir(copyscope):
        found = getattr(copyscope, name)
        assert callable(found), name
        assert found.__name__ in (name, "map_formation" if name == "map" else name)
        assert found.__doc__, name


def test_every_command_has_its_function() -> None:
    from copyscope.analyses.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names - set(dir(copyscope)) == set()


def test_importing_it_loads_nothing_else() -> None:
    """In place of a time: neither torch nor polars nor any module of ours but the first."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    *loaded, rooms = done.stdout.split()
    assert set(loaded) - ALLOWED == set()
    assert rooms == "False"


def test_the_rooms_offer_what_their_stubs_say() -> None:
    """Every `__init__.pyi` names what exists, and no name hides a module of its room."""
    import importlib
    import pkgutil

    rooms = [m for m in pkgutil.walk_packages(copyscope.__path__, "copyscope.") if m.ispkg]
    assert len(rooms) > 15
    for room in rooms:
        module = importlib.import_module(room.name)
        files = {m.name for m in pkgutil.iter_modules(module.__path__)}
        for name in getattr(module, "__all__", ()):
            assert getattr(module, name) is not None, f"{room.name}.{name}"
            assert name not in files, f"{room.name}.{name}"
