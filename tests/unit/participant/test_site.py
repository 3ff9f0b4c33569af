"""A site's folder."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path

import pytest

from participant.rules import SiteRules
from participant.site import CONFIG, IDENTITY, Site, SiteConfig
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.policy import SitePolicy
from wire import ConfigError, DataError, FederationCA, RefusedError, Role, make_csr


@pytest.fixture
def ca() -> FederationCA:
    return FederationCA.create("demo")


@pytest.fixture
def site(tmp_path: Path, ca: FederationCA) -> Site:
    config = SiteConfig(
        session_address="localhost:1",
        enrolment_address="localhost:2",
        root="ab" * 32,
        data='folder:/data/"odd" \\name',
        allow=("mine.models:make", "mine.models:loss"),
    )
    own = ca.issue_client("hospital-a", Role.PARTICIPANT, 90.0)
    made = Site(tmp_path / "home", config, own, SigningKey(b"k" * 32))
    made.save()
    return made


def test_it_is_read_back_as_it_was_written(site: Site) -> None:
    assert Site.load(site.folder) == site
    assert (site.name, site.federation) == ("hospital-a", "demo")
    assert tomllib.loads((site.folder / CONFIG).read_text())["allow"] == list(site.config.allow)
    assert site.root == b"\xab" * 32
    for name in ("key.pem", "signing.key"):
        assert (site.folder / IDENTITY / name).stat().st_mode & 0o777 == 0o600
    assert "6b6b" not in repr(site)


def test_a_folder_nobody_joined_from_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no federation was joined") as failure:
        Site.load(tmp_path)
    assert "participant join" in failure.value.hint


def test_a_mistake_in_the_sites_file_is_named(site: Site) -> None:
    path = site.folder / CONFIG
    path.write_text(path.read_text().replace("allow =", "alow ="))
    with pytest.raises(ConfigError, match="did you mean 'allow'"):
        Site.load(site.folder)


def test_a_control_character_in_the_data_source_is_refused(site: Site, tmp_path: Path) -> None:
    config = site.config.model_copy(update={"data": "a\nb = 1"})
    with pytest.raises(ConfigError, match="control character"):
        Site(tmp_path / "other", config, site.credentials, site.signing_key).save()


def test_plain_averaging_is_refused_unless_the_site_says_otherwise(site: Site) -> None:
    assert site.rules == SiteRules(allow_plain=False, secure=SitePolicy())
    path = site.folder / CONFIG
    text = path.read_text()
    assert "\nallow_plain = false\n" in text
    path.write_text(text.replace("allow_plain = false", "allow_plain = true"))
    assert Site.load(site.folder).rules.allow_plain


def test_the_sites_own_rules_for_secure_sums_are_read_from_its_file(site: Site) -> None:
    path = site.folder / CONFIG
    text = path.read_text()
    assert "[secure_aggregation]" in text
    path.write_text(
        text.replace("min_cohort = 3", "min_cohort = 8").replace("max_value_bits = 30", "max_value_bits = 20")
    )
    assert Site.load(site.folder).rules.secure == SitePolicy(min_cohort=8, max_value_bits=20)


@pytest.mark.parametrize(
    ("line", "changed", "key"),
    [
        ("min_cohort = 3", "min_cohort = 2", "min_cohort"),
        ("min_roster_change = 2", "min_roster_change = 0", "min_roster_change"),
        ("remembered_rosters = 5", "remembered_rosters = 33", "remembered_rosters"),
        ("max_clip_norm", "max_clip_nrom", "max_clip_norm"),
        ("allow_plain = false", 'allow_plain = "perhaps"', "allow_plain"),
    ],
)
def test_a_rule_out_of_range_names_itself(site: Site, line: str, changed: str, key: str) -> None:
    path = site.folder / CONFIG
    text = path.read_text()
    assert text.count(line) >= 1
    path.write_text(text.replace(line, changed))
    with pytest.raises(ConfigError, match=key):
        Site.load(site.folder)


@pytest.mark.parametrize("root", ["", "ab", "AB" * 32, "zz" * 32])
def test_a_root_that_is_no_key_is_named(site: Site, root: str) -> None:
    path = site.folder / CONFIG
    path.write_text(path.read_text().replace("ab" * 32, root))
    with pytest.raises(ConfigError, match="root"):
        Site.load(site.folder)


def test_a_damaged_or_readable_signing_key_is_named(site: Site) -> None:
    path = site.folder / IDENTITY / "signing.key"
    path.write_text("nonsense")
    with pytest.raises(DataError, match="not a private key"):
        Site.load(site.folder)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        Site.load(site.folder)


def test_a_certificate_is_renewed_after_two_thirds_of_its_life(site: Site) -> None:
    now = datetime.datetime.now(datetime.UTC)
    assert not site.renewal_due(now + datetime.timedelta(days=59))
    assert site.renewal_due(now + datetime.timedelta(days=61))


def test_a_renewed_certificate_is_kept_and_a_strangers_is_not(site: Site, ca: FederationCA) -> None:
    csr = make_csr(site.credentials.key_pem, "hospital-a")
    renewed = site.renewed(ca.sign_csr(csr, "hospital-a", Role.PARTICIPANT, 180.0))
    assert Site.load(site.folder) == renewed
    for stranger in (
        ca.issue_client("hospital-a", Role.PARTICIPANT, 1.0).certificate_pem,
        ca.sign_csr(csr, "hospital-b", Role.PARTICIPANT, 1.0),
    ):
        with pytest.raises(RefusedError, match="another certificate"):
            site.renewed(stranger)
    assert Site.load(site.folder) == renewed
