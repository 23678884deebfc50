//! How the proxy proves to the control plane who it is: a token of its service account, read anew for every request, for
//! the kubelet replaces it long before it expires.

use std::path::{Path, PathBuf};

/// Where a DaemonSet of Istio has the token.
const DEFAULT_PATH: &str = "./var/run/secrets/tokens/istio-token";

/// Where the token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// In this file.
    File(PathBuf),
    /// It is this.
    Literal(String),
    /// There is none.
    None,
}

/// The token cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {path}: {why}", code = error_code::control::TOKEN, path = .path.display())]
pub(crate) struct TokenError {
    path: PathBuf,
    why: String,
}

impl Token {
    /// From the value of AUTH_TOKEN: a path or the token itself, which has no slash in it.
    pub(crate) fn from_setting(value: Option<&str>) -> Self {
        match value.filter(|v| !v.is_empty()) {
            Some(value) if value.contains('/') || Path::new(value).exists() => Self::File(value.into()),
            Some(value) => Self::Literal(value.to_owned()),
            None if Path::new(DEFAULT_PATH).exists() => Self::File(DEFAULT_PATH.into()),
            None => Self::None,
        }
    }

    /// The token as it is now.
    pub(crate) fn read(&self) -> Result<Option<String>, TokenError> {
        match self {
            Self::File(path) => {
                let failed = |why: String| TokenError { path: path.clone(), why };
                let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
                let token = text.trim();
                if token.is_empty() { Err(failed("it is empty".to_owned())) } else { Ok(Some(token.to_owned())) }
            }
            Self::Literal(token) => Ok(Some(token.clone())),
            Self::None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_file_or_itself() {
        assert_eq!(Token::from_setting(Some("eyJhbGciOi.e30.c2ln")), Token::Literal("eyJhbGciOi.e30.c2ln".to_owned()));
        assert_eq!(Token::from_setting(Some("/nowhere/token")), Token::File("/nowhere/token".into()));
        let error = Token::from_setting(Some("/nowhere/token")).read().unwrap_err().to_string();
        assert!(error.starts_with("UP-CONTROL-005: /nowhere/token"), "{error}");
        assert!(Token::from_setting(Some("/dev/null")).read().is_err(), "an empty file is no token");
        assert_eq!(Token::None.read().unwrap(), None);
    }
}
