//! Content codings of request bodies: `gzip` and `deflate` are decoded, others are refused.
//!
//! Invariant: what one call decodes is bounded by [`PIECE`] bytes of input, so a small body that decodes to a large one never
//! takes more memory than the caller's own bound and that.

use std::io::Write as _;

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use flate2::write::{MultiGzDecoder, ZlibDecoder};

use super::problem::Problem;
use crate::api::problem::Code;

/// Bytes that are decoded in one go. Deflate makes at most 1,032 bytes of one.
pub const PIECE: usize = 256;

/// Decodes a body.
#[derive(Debug)]
pub enum Decoder {
    /// As it is.
    Identity,
    /// RFC 1952.
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    /// RFC 1950: the zlib format, which HTTP calls deflate.
    Deflate(Box<ZlibDecoder<Vec<u8>>>),
}

impl Decoder {
    /// As `Content-Encoding` says.
    ///
    /// # Errors
    /// 415 for a coding that is not known, or more than one.
    pub fn of(request: &HttpRequest) -> Result<Self, Problem> {
        let fields = request.headers().get_all(CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?"));
        let codings: Vec<String> = fields
            .flat_map(|value| value.split(','))
            .map(|coding| coding.trim().to_ascii_lowercase())
            .filter(|coding| !coding.is_empty() && coding != "identity")
            .collect();
        match codings.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] => Ok(Self::Identity),
            ["gzip" | "x-gzip"] => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new())))),
            ["deflate"] => Ok(Self::Deflate(Box::new(ZlibDecoder::new(Vec::new())))),
            _ => {
                let detail = "the body's Content-Encoding must be gzip, deflate or identity, and only one of them";
                let problem =
                    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::UnsupportedContentEncoding, detail);
                Err(problem.header(ACCEPT_ENCODING, "gzip, deflate, identity"))
            }
        }
    }

    /// What `piece`, of at most [`PIECE`] bytes, decodes to.
    ///
    /// # Errors
    /// 400 if it is not of the coding.
    pub fn decode(&mut self, piece: &[u8]) -> Result<Vec<u8>, Problem> {
        match self {
            Self::Identity => Ok(piece.to_vec()),
            Self::Gzip(decoder) => {
                decoder.write_all(piece).map_err(|_| not_of("gzip"))?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Deflate(decoder) => {
                decoder.write_all(piece).map_err(|_| not_of("deflate"))?;
                Ok(std::mem::take(decoder.get_mut()))
            }
        }
    }

    /// What is left at the end.
    ///
    /// # Errors
    /// 400 if the end is missing, or does not fit what came before.
    pub fn end(&mut self) -> Result<Vec<u8>, Problem> {
        match self {
            Self::Identity => Ok(Vec::new()),
            Self::Gzip(decoder) => {
                decoder.try_finish().map_err(|_| not_of("gzip"))?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Deflate(decoder) => {
                decoder.try_finish().map_err(|_| not_of("deflate"))?;
                Ok(std::mem::take(decoder.get_mut()))
            }
        }
    }
}

fn not_of(coding: &str) -> Problem {
    let detail = format!("the body is not what its Content-Encoding says: it is no {coding}, or damaged or cut off");
    Problem::bad_request(Code::InvalidContentEncoding, detail)
}
