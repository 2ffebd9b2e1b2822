from .build import script_json as script_json
from .contents import Payload as Payload
from .report import report_page as report_page
from .texts import Texts as Texts
from .texts import texts_of as texts_of
