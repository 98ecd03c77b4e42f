//! What `WEBSITE_RUN_FROM_PACKAGE` says.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::download::Source;
use super::error::AppError;
use super::reference::{Reference, Resolution};
use super::settings::Settings;

/// The setting, and its older name.
pub const SETTING: &str = "WEBSITE_RUN_FROM_PACKAGE";
const SETTING_OLD: &str = "WEBSITE_RUN_FROM_ZIP";
/// Makes a host copy its content, which is not what running from a package is.
const LOCAL_CACHE: &str = "WEBSITE_LOCAL_CACHE_OPTION";
/// Where packages of the value `1` are, below HOME, and the file that names the current one.
const SITE_PACKAGES: &str = "data/SitePackages";
const PACKAGE_NAME: &str = "packagename.txt";
/// Longest content of that file, in bytes: a name of 255, and line ends.
const NAME_FILE_BYTES_MAX: u64 = 1024;

/// Where the package is.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// To be downloaded.
    Url(Source),
    /// A file of this host.
    Path(PathBuf),
    /// Nobody knows: the vault that has the answer could not be asked.
    Unknown {
        /// Why.
        problem: String,
    },
}

/// What the settings want.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the setting says, without secrets: the same text means the same package source.
    pub setting: String,
    /// Where the package is.
    pub wanted: Wanted,
}

/// Whether a setting is the one that says where the package is.
pub fn is_package(name: &str) -> bool {
    matches!(name, SETTING | SETTING_OLD)
}

/// The file that names the package when the setting is `1`.
pub fn name_file(home: &Path) -> PathBuf {
    home.join(SITE_PACKAGES).join(PACKAGE_NAME)
}

/// What `resolved` wants; `raw` are the same settings with references as they are, and
/// `resolutions` what became of those.
///
/// # Errors
/// What cannot be served, whoever is asked.
pub fn request(
    home: &Path,
    raw: &Settings,
    resolved: &Settings,
    resolutions: &[Resolution],
) -> Result<Request, AppError> {
    let refuse = |setting: &str, problem: &str| AppError::Setting {
        setting: setting.to_owned(),
        problem: problem.to_owned(),
    };
    if resolved.get(LOCAL_CACHE).is_some_and(|value| value.trim().eq_ignore_ascii_case("Always")) {
        let problem = "Always cannot be combined with running from a package, which is served from \
                       the store anyway; remove this setting";
        return Err(refuse(LOCAL_CACHE, problem));
    }
    let name = [SETTING, SETTING_OLD].into_iter().find(|name| raw.get(name).is_some());
    let name = name.unwrap_or(SETTING);
    let value = resolved.get(name).unwrap_or_default().trim();
    let said = raw.get(name).unwrap_or_default().trim();
    if matches!(value, "" | "0") {
        let problem = "there is no package to run from; set it to a URL, a path, or 1 for the \
                       package that data/SitePackages/packagename.txt names";
        return Err(refuse(name, problem));
    }
    let resolution = resolutions.iter().find(|resolution| resolution.setting == name);
    if let Some(Resolution { identifier, outcome: Err(error), .. }) = resolution {
        let problem = error.problem.clone();
        if error.is_definitive {
            return Err(AppError::Reference {
                setting: name.to_owned(),
                problem,
                is_outage: false,
            });
        }
        return Ok(Request { setting: identifier.clone(), wanted: Wanted::Unknown { problem } });
    }
    let wanted = of_value(home, value).map_err(|problem| refuse(name, &problem))?;
    let setting = match (resolution, &wanted) {
        (Some(resolution), _) => resolution.identifier.clone(),
        (None, Wanted::Url(source)) => source.to_string(),
        (None, _) => said.to_owned(),
    };
    let wanted = match (value, wanted) {
        ("1", _) => Wanted::Path(named(home)?),
        (_, wanted) => wanted,
    };
    Ok(Request { setting, wanted })
}

fn of_value(home: &Path, value: &str) -> Result<Wanted, String> {
    let begins = |scheme: &str| {
        value.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme))
    };
    if begins("https://") || begins("http://") {
        let source = Source::parse(value).map_err(|error| error.to_string())?;
        return Ok(Wanted::Url(source));
    }
    // A reference that was not resolved is never a path.
    if value.contains("://") || value.starts_with('@') || Reference::begins(value) {
        return Err("this is neither 1, a path nor a URL of https".to_owned());
    }
    Ok(Wanted::Path(home.join(value)))
}

/// The package that `packagename.txt` names.
fn named(home: &Path) -> Result<PathBuf, AppError> {
    let path = name_file(home);
    let failed = |source| AppError::File { attempt: "read", path: path.clone(), source };
    let file = std::fs::File::open(&path).map_err(failed)?;
    let mut text = Vec::new();
    file.take(NAME_FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    let name = name_in(&text).map_err(|problem| AppError::Setting {
        setting: path.display().to_string(),
        problem: problem.to_owned(),
    })?;
    Ok(path.with_file_name(name))
}

/// The name in the content of `packagename.txt`.
fn name_in(text: &[u8]) -> Result<&str, &'static str> {
    if text.len() as u64 > NAME_FILE_BYTES_MAX {
        return Err("it is too long; it has the name of a package in it and nothing else");
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let name = std::str::from_utf8(text).map_err(|_| "it is not UTF-8")?.trim();
    if name.is_empty() {
        return Err("it is empty; write the name of the package into it");
    }
    if name.contains(['/', '\\']) || matches!(name, "." | "..") {
        return Err("it names a path; write only the name of a package beside it");
    }
    if name.chars().any(char::is_control) {
        return Err("it has more than one line, or control characters");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::of_environment(pairs)
    }

    fn ask(pairs: &[(&str, &str)]) -> Result<Request, AppError> {
        let settings = settings(pairs);
        request(Path::new("/home"), &settings, &settings, &[])
    }

    /// Each kind of value leads where it should, and a URL's query is in nothing that is shown.
    #[test]
    fn values() {
        let url = "https://a.example/c/app.zip?sig=s3cret";
        let found = ask(&[(SETTING, url)]).expect("a URL");
        assert!(matches!(found.wanted, Wanted::Url(_)));
        assert_eq!(found.setting, "https://a.example/c/app.zip");
        assert!(!format!("{found:?}").contains("s3cret"));
        for (value, path) in [("/srv/a.zip", "/srv/a.zip"), ("site/a.zip", "/home/site/a.zip")] {
            let found = ask(&[(SETTING_OLD, value)]).expect(value);
            assert!(matches!(&found.wanted, Wanted::Path(found) if found == Path::new(path)));
        }
    }

    /// What is refused, and what it is called.
    #[test]
    fn refused() {
        let reference = "@Microsoft.KeyVault(SecretUri=https://v/secrets/s)";
        for (pairs, words) in [
            (vec![], "no package to run from"),
            (vec![(SETTING, "0")], "no package to run from"),
            (vec![(SETTING, "ftp://a/b.zip")], "neither 1, a path"),
            (vec![(SETTING, "file:///b.zip")], "neither 1, a path"),
            (vec![(SETTING, reference)], "neither 1, a path"),
            (vec![(SETTING, "https://u@a/b.zip?sig=s3cret")], "not a URL"),
            (vec![(SETTING, "/a.zip"), (LOCAL_CACHE, "always")], "cannot be combined"),
        ] {
            let error = ask(&pairs).expect_err(words).to_string();
            assert!(error.contains(words) && !error.contains("s3cret"), "{error}");
        }
    }

    /// A name, with the BOM and the line ends that tools leave; and nothing but a name.
    #[test]
    fn names() {
        for text in ["a b.zip", "\u{feff}a b.zip\r\n", "\n a b.zip \n\n"] {
            assert_eq!(name_in(text.as_bytes()), Ok("a b.zip"), "{text:?}");
        }
        for text in ["", "\r\n", "../a.zip", "/a.zip", "..", "c:\\a.zip", "a.zip\nb.zip", "a\0.zip"]
        {
            assert!(name_in(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(name_in(b"\xff.zip").is_err() && name_in(&[b'a'; 2000]).is_err());
    }
}
