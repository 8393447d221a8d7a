"""Fine-tune language models in Jupyter, step by step, with reproducible reports.

    from kitchen import Kitchen

    k = Kitchen("sft", epochs=2)   # a recipe and its settings; checked now, nothing is started yet
    k.run(until="train")           # or k.step(), one stage or batch at a time
    k.show_results()               # and k.peek(), k.chat(), k.dashboard(), k.fork(…), k.rewind(…)

`Kitchen?` explains the session; `kitchen --help` in a terminal does the same without a notebook.
`runs()` lists what has been done, `compare(…)` lays runs side by side, `dashboard(…)` shows several at once.

Where things live:

    kitchen.session    `Kitchen`, the run one holds; kitchen.inspection, what one asks of a run and its model
    kitchen.recipes    what can be cooked: workflows with their settings
    kitchen.workflows  the stages of the recipes; kitchen.engine runs, keeps and restores them
    kitchen.train      the training loops on one page each; kitchen.losses, what they minimise
    kitchen.data       datasets; kitchen.rendering, conversations as tokens; kitchen.envs, worlds to play in
    kitchen.ports      what a backend has to offer; kitchen.adapters, those that do (torch, toy, …)
    kitchen.reports    reports and comparisons; kitchen.display and kitchen.widgets, figures and dashboards
    kitchen.store      runs on disk: log, artifacts, index
"""

__version__ = "0.1.0"

import lazy_loader

# names and modules come when first used, so that `import kitchen` stays light; the stub beside this file lists them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
