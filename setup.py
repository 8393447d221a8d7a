"""Package metadata lives in settings.ini, which nbdev reads too; this file only hands it to setuptools."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
extras = {
    key.removesuffix("_requirements"): value.split()
    for key, value in settings.items()
    if key.endswith("_requirements")
}

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    keywords=settings["keywords"].split(),
    packages=[*find_packages(include=["kitchen", "kitchen.*"]), "kitchen.recipes_nb"],
    package_dir={"kitchen.recipes_nb": "recipes_nb"},
    package_data={"kitchen": ["assets/**/*", "py.typed", "**/*.pyi"], "kitchen.recipes_nb": ["*.ipynb"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": ["kitchen=kitchen._modidx:d"],
    },
    zip_safe=False,
)
