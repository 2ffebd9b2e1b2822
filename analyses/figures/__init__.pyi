from .figures import formation_map_figure as formation_map_figure
from .map_data import phase_change as phase_change
from .maps import map_formation as map_formation
from .paper import paper_map as paper_map
from .paper import rendered as rendered
