from .control import Change as Change
from .control import read_schedule as read_schedule
from .experiment import Experiment as Experiment
from .figures import figure_page as figure_page
from .problem import Problem as Problem
from .records import read_table as read_table
from .settings import Settings as Settings
from .settings import SettingsError as SettingsError
