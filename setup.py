"""Package metadata lives in settings.ini, which nbdev reads too; this file only hands it to setuptools."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
extras = {
    key.removesuffix("_requirements"): value.split()
    for key, value in settings.items()
    if key.endswith("_requirements")
}
# SDKs that exclude each other, and some of what is pinned, and a cluster: each in an environment of its own
services = {"tinker", "fireworks", "together", "modal", "ray"}
integrations = extras.keys() - {"dev", "docs"} - services
extras["all"] = sorted({requirement for name in integrations for requirement in extras[name]})
extras["dev"] = [*extras["dev"], *extras["all"]]


class BuildWithRecipes(build_py):
    """Put the recipes into the package when a wheel is built; an editable install reads them where they stand.

    A `package_dir` entry for them would do the same, but makes setuptools install an import hook that comes after the
    path, so that in the folder above a clone named `kitchen` the clone itself, seen as a namespace, hides the package.
    """

    def run(self):
        super().run()
        if not self.editable_mode:
            for notebook in sorted((here / "recipes_nb").glob("*.ipynb")):
                target = Path(self.build_lib, "kitchen", "recipes_nb", notebook.name)
                self.mkpath(str(target.parent))
                self.copy_file(str(notebook), str(target))


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    project_urls=dict(line.split(" = ") for line in settings["project_urls"].strip().splitlines()),
    license_expression=settings["license"],
    license_files=["LICENSE"],
    classifiers=settings["classifiers"].strip().splitlines(),
    keywords=settings["keywords"].split(),
    packages=find_packages(include=["kitchen", "kitchen.*"]),
    package_dir={"": "."},  # with this alone an editable install is one line in a .pth file
    package_data={"kitchen": ["assets/**/*", "py.typed", "**/*.pyi"]},
    cmdclass={"build_py": BuildWithRecipes},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": ["kitchen=kitchen._modidx:d"],
    },
    zip_safe=False,
)
