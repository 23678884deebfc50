//! The service account token that authenticates the proxy to the control plane. It is read for
//! every request, because the kubelet replaces it long before it expires.

use std::path::{Path, PathBuf};

/// Path of the token in Istio's DaemonSet.
const DEFAULT_PATH: &str = "./var/run/secrets/tokens/istio-token";

/// Source of the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// A file.
    File(PathBuf),
    /// The token itself.
    Literal(String),
    /// No token.
    None,
}

/// The token cannot be read. Likely cause: the projected volume is missing.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {path}: {reason}", code = error_code::control::TOKEN, path = .path.display())]
pub(crate) struct TokenError {
    path: PathBuf,
    reason: String,
}

impl Token {
    /// Parses the value of AUTH_TOKEN: a path, or the token itself, which contains no slash.
    pub(crate) fn from_setting(value: Option<&str>) -> Self {
        match value.filter(|v| !v.is_empty()) {
            Some(value) if value.contains('/') || Path::new(value).exists() => {
                Self::File(value.into())
            }
            Some(value) => Self::Literal(value.to_owned()),
            None if Path::new(DEFAULT_PATH).exists() => Self::File(DEFAULT_PATH.into()),
            None => Self::None,
        }
    }

    /// Reads the current token.
    pub(crate) fn read(&self) -> Result<Option<String>, TokenError> {
        match self {
            Self::File(path) => {
                let failed = |reason: String| TokenError {
                    path: path.clone(),
                    reason,
                };
                let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
                let token = text.trim();
                if token.is_empty() {
                    Err(failed("the file is empty".to_owned()))
                } else {
                    Ok(Some(token.to_owned()))
                }
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
    fn a_token_is_read_from_a_file_or_given_literally() {
        assert_eq!(
            Token::from_setting(Some("eyJhbGciOi.e30.c2ln")),
            Token::Literal("eyJhbGciOi.e30.c2ln".to_owned())
        );
        assert_eq!(
            Token::from_setting(Some("/nowhere/token")),
            Token::File("/nowhere/token".into())
        );
        let error = Token::from_setting(Some("/nowhere/token"))
            .read()
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("UP-CONTROL-005: /nowhere/token"),
            "{error}"
        );
        assert!(
            Token::from_setting(Some("/dev/null")).read().is_err(),
            "an empty file is rejected"
        );
        assert_eq!(Token::None.read().unwrap(), None);
    }
}
