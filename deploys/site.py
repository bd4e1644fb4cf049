"""Lay every layer on every host of the fleet, bottom up.

    pyinfra -y inventories/FLEET/inventory.py deploys/site.py

Each layer also runs alone, as in `pyinfra -y inventories/FLEET/inventory.py deploys/ollama.py`. A second run
changes nothing.
"""

from deploys import container_toolkit, models, monitoring, nvidia_driver, ollama, proxy

# One line a layer: pyinfra tells operations of different hosts apart by the lines they come from.
nvidia_driver.LAYER.run()
container_toolkit.LAYER.run()
ollama.LAYER.run()
models.LAYER.run()
proxy.LAYER.run()
monitoring.LAYER.run()
