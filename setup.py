"""The list of packages; all else is in pyproject.toml. The gin files live beside the package in the repository and inside it once installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["musiclm_jax", "musiclm_jax.*"]), "musiclm_jax.gin_configs"],
    package_dir={"musiclm_jax.gin_configs": "gin_configs"},
    package_data={
        "musiclm_jax": [
            *("bundles/*/*", "models/weights/*", "evaluation/weights/*", "evaluation/*.js"),
            *("corpus/sampled/*.gz", "corpus/sampled/*.md", "corpus/sampled/NOTICE", "corpus/sampled/wordlists/*.toml"),
        ],
        "musiclm_jax.gin_configs": ["**/*.gin"],
    },
)
