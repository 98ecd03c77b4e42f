//! Who this host is to a vault, and how it gets a token.
//!
//! The order is that of the official SDKs' default credential: an application with a secret or
//! certificate, then a federated token (workload identity), then the managed identity of the
//! machine. The first whose settings are complete is used, and none after it: a credential that is
//! refused must not lead to another one being tried unnoticed. The environment is read anew for
//! each token, because platforms change it and the files it names.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::challenge::Challenge;
use super::token::{Token, refusal};
use super::{KekErrorKind, certificate};
use crate::key::authorize::{AzureIdentity, AzureSettings, EndpointSettings};
use crate::key::file::{FileError, read_bounded, read_line};
use crate::key::http::{Client, Deadline, HttpError, Proxy, Request, Settings, Url, encode_form};

/// Largest file with a secret or token, in bytes.
const FILE_BYTES_MAX: usize = 32 * 1024;
/// Azure's instance metadata service.
const IMDS: &str = "http://169.254.169.254";
/// How long to wait for a metadata service: it is next to this host, or not there.
const METADATA_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Answers of metadata services that are still starting.
const METADATA_RETRIED: &[u16] = &[404, 410, 500];

/// The environment: a variable's value, if it is set, valid UTF-8 and not empty.
pub(super) type Variables = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Gets tokens.
pub(super) struct Identity {
    settings: AzureSettings,
    variables: Variables,
    vault: Url,
    /// With the entry's trust; the vault's own client, so that connections are shared.
    vault_client: Arc<Client>,
    /// With the host's trust.
    public_client: Client,
    /// To this host and its metadata service.
    metadata_client: Client,
    /// Who asked last, for messages.
    asked_as: Mutex<Option<String>>,
}

/// What a token is had with.
enum Source {
    Secret { application: Application, secret: Zeroizing<String> },
    Certificate { application: Application, path: PathBuf },
    Federated { application: Application, path: PathBuf },
    AppService { endpoint: Url, header: Zeroizing<String> },
    Imds { endpoint: Url },
}

struct Application {
    client_id: String,
    /// `…/oauth2/v2.0/token`.
    endpoint: Url,
}

impl Identity {
    /// Whoever `settings` and the environment say, to `vault`.
    ///
    /// # Errors
    /// `Configuration`.
    pub fn new(
        settings: &EndpointSettings,
        vault: &Url,
        vault_client: Arc<Client>,
        variables: Variables,
    ) -> Result<Self, HttpError> {
        let public = Settings { ca_file: None, plain_http: false, ..settings.http.clone() };
        let metadata = Settings {
            ca_file: None,
            proxy: Proxy::None,
            plain_http: true,
            connect_timeout: METADATA_CONNECT_TIMEOUT.min(settings.http.connect_timeout),
            ..settings.http.clone()
        };
        Ok(Self {
            settings: settings.azure.clone(),
            variables,
            vault: vault.clone(),
            vault_client,
            public_client: Client::new(public)?,
            metadata_client: Client::new(metadata)?,
            asked_as: Mutex::new(None),
        })
    }

    /// A token that answers `challenge`, which was checked.
    ///
    /// # Errors
    /// `AuthenticationFailed`, `Configuration`, `Throttled` or `Unreachable`.
    pub fn token(&self, challenge: &Challenge, deadline: Deadline) -> Result<Token, KekErrorKind> {
        let configuration = |problem| KekErrorKind::Configuration { problem };
        let source = self.source(challenge).map_err(configuration)?;
        *self.asked_as.lock() = Some(self.describe(&source));
        let resource = challenge.resource.to_string();
        match &source {
            Source::Secret { application, secret } => {
                let proof = [("client_secret", secret.as_str())];
                self.ask_authority(application, &proof, &resource, deadline)
            }
            Source::Certificate { application, path } => {
                let pem = read_line(path, ("read the certificate from", "key"), FILE_BYTES_MAX)
                    .map_err(|error| configuration(error.to_string()))?;
                let assertion = certificate::assertion(
                    pem.expose(),
                    &application.client_id,
                    &application.endpoint.to_string(),
                )
                .map_err(|problem| configuration(format!("{}: {problem}", path.display())))?;
                self.ask_with_assertion(application, &assertion, &resource, deadline)
            }
            Source::Federated { application, path } => {
                let token = read_token(path)
                    .map_err(|error| configuration(error.to_string()))?
                    .ok_or_else(|| {
                        configuration(format!("{} has no token in it", path.display()))
                    })?;
                self.ask_with_assertion(application, &token, &resource, deadline)
            }
            Source::AppService { endpoint, header } => {
                let pairs = [("api-version", "2019-08-01"), ("resource", &resource)];
                let header = ("X-IDENTITY-HEADER", header.as_str());
                self.ask_metadata(endpoint, &pairs, header, deadline)
            }
            Source::Imds { endpoint } => {
                let pairs = [("api-version", "2018-02-01"), ("resource", &resource)];
                self.ask_metadata(endpoint, &pairs, ("Metadata", "true"), deadline)
            }
        }
    }

    /// Who asked for the last token, in words; `None` before the first.
    pub fn asked_as(&self) -> Option<String> {
        self.asked_as.lock().clone()
    }

    fn describe(&self, source: &Source) -> String {
        match source {
            Source::Secret { application, .. }
            | Source::Certificate { application, .. }
            | Source::Federated { application, .. } => {
                format!("the application {}", application.client_id)
            }
            Source::AppService { .. } | Source::Imds { .. } => match self.client_id() {
                Some(id) => format!("the managed identity {id}"),
                None => "the managed identity of this host".to_owned(),
            },
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        (self.variables)(name)
    }

    fn path(&self, setting: Option<&PathBuf>, variable: &str) -> Option<PathBuf> {
        setting.cloned().or_else(|| self.variable(variable).map(PathBuf::from))
    }

    /// The identity that is meant.
    fn source(&self, challenge: &Challenge) -> Result<Source, String> {
        let missing = |what: &str| {
            Err(format!(
                "the identity is not complete: {what}; set it in /etc/atrest/providers.toml or \
                 the environment"
            ))
        };
        let found = match self.settings.identity {
            Some(AzureIdentity::ClientSecret) => {
                let found = self.secret(challenge)?;
                return found.map_or_else(
                    || missing("client_id, or client_secret_file (or AZURE_CLIENT_SECRET)"),
                    Ok,
                );
            }
            Some(AzureIdentity::ClientCertificate) => {
                let found = self.certificate(challenge)?;
                return found.map_or_else(|| missing("client_id or client_certificate_file"), Ok);
            }
            Some(AzureIdentity::Workload) => {
                let found = self.federated(challenge)?;
                return found.map_or_else(|| missing("client_id or federated_token_file"), Ok);
            }
            Some(AzureIdentity::Managed) => None,
            None => match self.secret(challenge)? {
                Some(source) => Some(source),
                None => match self.certificate(challenge)? {
                    Some(source) => Some(source),
                    None => self.federated(challenge)?,
                },
            },
        };
        found.map_or_else(|| self.managed(), Ok)
    }

    fn secret(&self, challenge: &Challenge) -> Result<Option<Source>, String> {
        let secret = match &self.settings.client_secret_file {
            Some(path) => {
                let what = ("read the client secret from", "client secret");
                let secret =
                    read_line(path, what, FILE_BYTES_MAX).map_err(|error| error.to_string())?;
                let text = std::str::from_utf8(secret.expose())
                    .map_err(|_| format!("{} is not text", path.display()))?;
                Some(Zeroizing::new(text.to_owned()))
            }
            None => self.variable("AZURE_CLIENT_SECRET").map(Zeroizing::new),
        };
        let Some(secret) = secret else { return Ok(None) };
        let application = self.application(challenge)?;
        Ok(application.map(|application| Source::Secret { application, secret }))
    }

    fn certificate(&self, challenge: &Challenge) -> Result<Option<Source>, String> {
        let setting = self.settings.client_certificate_file.as_ref();
        let path = self.path(setting, "AZURE_CLIENT_CERTIFICATE_PATH");
        let Some(path) = path else { return Ok(None) };
        let application = self.application(challenge)?;
        Ok(application.map(|application| Source::Certificate { application, path }))
    }

    fn federated(&self, challenge: &Challenge) -> Result<Option<Source>, String> {
        let setting = self.settings.federated_token_file.as_ref();
        let path = self.path(setting, "AZURE_FEDERATED_TOKEN_FILE");
        let Some(path) = path else { return Ok(None) };
        let application = self.application(challenge)?;
        Ok(application.map(|application| Source::Federated { application, path }))
    }

    fn managed(&self) -> Result<Source, String> {
        let endpoint = |name: &str, text: &str| {
            Url::parse(text).map_err(|error| format!("the variable {name} is {error}"))
        };
        if let (Some(text), Some(header)) =
            (self.variable("IDENTITY_ENDPOINT"), self.variable("IDENTITY_HEADER"))
        {
            let endpoint = endpoint("IDENTITY_ENDPOINT", &text)?;
            return Ok(Source::AppService { endpoint, header: Zeroizing::new(header) });
        }
        // The SDKs' variable for another metadata service.
        const OTHER: &str = "AZURE_POD_IDENTITY_AUTHORITY_HOST";
        let base = self.variable(OTHER).unwrap_or_else(|| IMDS.to_owned());
        let base = endpoint(OTHER, &base)?;
        let endpoint = base.with_path("/metadata/identity/oauth2/token");
        Ok(Source::Imds { endpoint: endpoint.map_err(|error| error.to_string())? })
    }

    fn client_id(&self) -> Option<String> {
        self.settings.client_id.clone().or_else(|| self.variable("AZURE_CLIENT_ID"))
    }

    /// The application that is meant, if there is a client id.
    fn application(&self, challenge: &Challenge) -> Result<Option<Application>, String> {
        let Some(client_id) = self.client_id() else { return Ok(None) };
        let (authority, own_tenant) = self.authority(challenge)?;
        let tenant = self.settings.tenant_id.clone();
        let tenant = tenant.or_else(|| self.variable("AZURE_TENANT_ID")).or(own_tenant).ok_or(
            "the tenant is not known; set tenant_id in /etc/atrest/providers.toml, or \
             AZURE_TENANT_ID",
        )?;
        let path = format!("{}/{tenant}/oauth2/v2.0/token", authority.path().trim_end_matches('/'));
        let endpoint = authority
            .with_path(&path)
            .map_err(|_| "the tenant is neither an id nor a domain".to_owned())?;
        Ok(Some(Application { client_id, endpoint }))
    }

    /// Where applications get tokens, and the tenant that the vault names there. A credential is
    /// sent where settings or environment say, to the vault itself if it says so, or to the login
    /// service of the cloud that the resource belongs to; never to where a reply points.
    fn authority(&self, challenge: &Challenge) -> Result<(Url, Option<String>), String> {
        let named = challenge.authorization.as_ref();
        let tenant_at = |authority: &Url| {
            let named = named.filter(|url| url.is_same_origin(authority))?;
            named.segments().last().map(str::to_owned)
        };
        let configured =
            match (&self.settings.authority_host, self.variable("AZURE_AUTHORITY_HOST")) {
                (Some(url), _) => Some(url.clone()),
                (None, Some(text)) => {
                    let text = if text.contains("://") { text } else { format!("https://{text}") };
                    let url = Url::parse(&text);
                    Some(url.map_err(|error| format!("AZURE_AUTHORITY_HOST is {error}"))?)
                }
                (None, None) => None,
            };
        if let Some(authority) = configured {
            let tenant = tenant_at(&authority);
            return Ok((authority, tenant));
        }
        if let Some(own) = named.filter(|url| url.is_same_origin(&self.vault)) {
            let tenant = tenant_at(own);
            return Ok((self.vault.clone(), tenant));
        }
        let cloud = match challenge.resource.host().rsplit_once('.') {
            Some((_, "cn")) => "https://login.chinacloudapi.cn",
            _ if challenge.resource.host().ends_with("usgovcloudapi.net") => {
                "https://login.microsoftonline.us"
            }
            _ => "https://login.microsoftonline.com",
        };
        let cloud = Url::parse(cloud).map_err(|error| error.to_string())?;
        // Its older name means the same tenants.
        let tenant =
            named.filter(|url| url.is_same_origin(&cloud) || url.host() == "login.windows.net");
        let tenant = tenant.and_then(|url| url.segments().next().map(str::to_owned));
        Ok((cloud, tenant))
    }

    fn ask_with_assertion(
        &self,
        application: &Application,
        assertion: &str,
        resource: &str,
        deadline: Deadline,
    ) -> Result<Token, KekErrorKind> {
        const KIND: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        let proof = [("client_assertion_type", KIND), ("client_assertion", assertion)];
        self.ask_authority(application, &proof, resource, deadline)
    }

    /// The client credentials grant (RFC 6749, section 4.4; RFC 7523 for assertions).
    fn ask_authority(
        &self,
        application: &Application,
        proof: &[(&str, &str)],
        resource: &str,
        deadline: Deadline,
    ) -> Result<Token, KekErrorKind> {
        let Application { client_id, endpoint } = application;
        let scope = format!("{resource}/.default");
        let mut pairs =
            vec![("grant_type", "client_credentials"), ("client_id", client_id), ("scope", &scope)];
        pairs.extend_from_slice(proof);
        let body = Zeroizing::new(encode_form(&pairs));
        // Microsoft's certificates are the host's to trust; a private authority's, the entry's.
        let is_public = ["login.microsoftonline.com", "login.microsoftonline.us"]
            .contains(&endpoint.host())
            || endpoint.host() == "login.chinacloudapi.cn";
        let client = if is_public { &self.public_client } else { &*self.vault_client };
        let request = Request::post_form(endpoint, body.as_bytes());
        let reply = client.send(&request, deadline).map_err(|error| unreachable_at("", error))?;
        match reply.status() {
            200 => Token::parse(&reply).map_err(|reason| KekErrorKind::Unreachable { reason }),
            _ => Err(refusal(&reply, &format!("the application {client_id}"))),
        }
    }

    fn ask_metadata(
        &self,
        endpoint: &Url,
        pairs: &[(&str, &str)],
        header: (&'static str, &str),
        deadline: Deadline,
    ) -> Result<Token, KekErrorKind> {
        let client_id = self.client_id();
        let mut pairs = pairs.to_vec();
        if let Some(client_id) = &client_id {
            pairs.push(("client_id", client_id));
        }
        let url = endpoint.with_query(&pairs);
        let request = Request::get(&url).header(header.0, header.1).retry_also(METADATA_RETRIED);
        // A vault of one's own serves identities as well, with the certificate that it has.
        let own = endpoint.is_same_origin(&self.vault);
        let client = if own { &*self.vault_client } else { &self.metadata_client };
        let reply = client.send(&request, deadline).map_err(|error| {
            unreachable_at(
                "this host has no identity: AZURE_CLIENT_ID and a secret, certificate or federated \
                 token are not set, and there is no managed identity: ",
                error,
            )
        })?;
        match reply.status() {
            200 => Token::parse(&reply).map_err(|reason| KekErrorKind::Unreachable { reason }),
            _ => Err(refusal(&reply, "the managed identity")),
        }
    }
}

/// No token, because there is no answer; which is no decision about the key.
fn unreachable_at(prefix: &str, error: HttpError) -> KekErrorKind {
    match error {
        HttpError::Configuration { problem } => KekErrorKind::Configuration { problem },
        error if prefix.is_empty() => KekErrorKind::Unreachable { reason: error.to_string() },
        error => KekErrorKind::AuthenticationFailed { reason: format!("{prefix}{error}") },
    }
}

/// The token in a file; platforms leave it readable to all in a place that is the process's own.
fn read_token(path: &Path) -> Result<Option<Zeroizing<String>>, FileError> {
    let opened = std::fs::File::open(path);
    let mut file = opened.map_err(FileError::io("read the federated token from", path))?;
    let bytes = read_bounded(&mut file, path, FILE_BYTES_MAX)?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    let is_token = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    Ok(is_token.then(|| Zeroizing::new(text.to_owned())))
}
