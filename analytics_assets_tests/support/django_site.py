"""Django, configured for this process, and the settings of a site for one test."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import django
import pytest
from django.conf import settings
from django.test import override_settings

from analytics_assets.telemetry import Telemetry
from analytics_assets.telemetry.django import count_responses

__all__ = ["COMMON", "LOCALE", "i18n_patterns", "site_settings"]

if not settings.configured:
    settings.configure(
        SECRET_KEY="test",  # noqa: S106
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="unset",
        USE_I18N=True,
        LANGUAGE_CODE="en",
        LANGUAGES=[("en", "English"), ("de", "Deutsch"), ("pt-br", "Português")],
        LOGGING_CONFIG=None,
    )
    django.setup()

# It must not be imported before there are settings.
from django.conf.urls.i18n import i18n_patterns

LOCALE = "django.middleware.locale.LocaleMiddleware"
COMMON = "django.middleware.common.CommonMiddleware"


@contextmanager
def site_settings(
    telemetry: Telemetry, *patterns: Any, middleware: tuple[Any, ...] = (None,), exclude: Any = None, **more: Any
) -> Iterator[None]:
    """Settings of a site with these URL patterns and middlewares, ours where None stands."""
    own, urlconf = ModuleType("own_counting"), ModuleType("urlconf")
    own.middleware = count_responses(telemetry, exclude=exclude)  # type: ignore[attr-defined]
    urlconf.urlpatterns = list(patterns)  # type: ignore[attr-defined]
    names = [name or f"{own.__name__}.middleware" for name in middleware]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, own.__name__, own)
        with override_settings(ROOT_URLCONF=urlconf, MIDDLEWARE=names, **more):
            yield
