# Every target sets up .venv first if it is not there or out of date. Without make: python scripts/bootstrap.py TARGET
PYTHON ?= python3
BOOTSTRAP = @$(PYTHON) scripts/bootstrap.py

.PHONY: help demo test test-slow torture check format setup

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## train a character LoRA on the bundled base model, from pictures to safetensors
	$(BOOTSTRAP) demo

test: ## run the fast tests
	$(BOOTSTRAP) test

test-slow: ## run all tests, the slow ones and those that need a GPU too
	$(BOOTSTRAP) test-slow

torture: ## kill, starve and damage runs in every way, for an hour or more, and print what held
	$(BOOTSTRAP) torture

check: ## what must be green before a commit: format, lint, types, fast tests
	$(BOOTSTRAP) check

format: ## format the code and mend what the linter can mend
	$(BOOTSTRAP) format

setup: ## only set up .venv
	$(BOOTSTRAP) setup
