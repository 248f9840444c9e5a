//! The query of a request, and percent-encoding.

use std::borrow::Cow;

/// The parameters of a request, still encoded.
///
/// A `+` stays what it is: no parameter of the API can hold a space, and many clients send the one of
/// `application/vnd.oci.image.manifest.v1+json` as it is.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    /// Of what stands behind the question mark, if there is one.
    pub fn new(raw: Option<&'a str>) -> Self {
        Self(raw.unwrap_or_default())
    }

    /// The values of all parameters with this name, in order.
    pub fn all(self, name: &'static str) -> impl Iterator<Item = Cow<'a, str>> {
        self.0.split('&').filter_map(move |parameter| {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            (decode(key) == name).then(|| decode(value))
        })
    }

    /// The value of the first parameter with this name.
    pub fn get(self, name: &'static str) -> Option<Cow<'a, str>> {
        self.all(name).next()
    }

    /// The same, with an empty value as none.
    pub fn filled(self, name: &'static str) -> Option<Cow<'a, str>> {
        self.get(name).filter(|value| !value.is_empty())
    }
}

/// A form: the body of a POST, or a query whose values hold spaces.
///
/// Here a `+` is a space, as in `application/x-www-form-urlencoded`: what clients send to a token service is
/// encoded by libraries that write spaces so, and every plus as `%2B`.
#[derive(Debug)]
pub struct Form(Vec<(String, String)>);

impl Form {
    /// Reads the encoded text.
    pub fn read(text: &str) -> Self {
        let plain = |text: &str| decode(&text.replace('+', " ")).into_owned();
        let pairs = text.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Self(pairs.map(|(key, value)| (plain(key), plain(value))).collect())
    }

    /// The values of all fields with this name, in order.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The value of the first field with this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }
}

/// `text` with each `%XX` as its byte. What isn't UTF-8 then becomes U+FFFD, which no name, tag or digest has.
pub fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let encoded = match behind {
            [high, low, ..] if byte == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match encoded {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &behind[2..];
            }
            None => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// `text` as a value in a query: all but RFC 3986's unreserved characters, `:` and `/` as `%XX`.
pub fn encode(text: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte);
    if text.bytes().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        match is_plain(byte) {
            true => encoded.push(char::from(byte)),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    Cow::Owned(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_each_by_itself() {
        let query = Query::new(Some("a=1&b=x%26a%3D2&%61=3&c&d=&e=%zz%4&f=v1+json&g=%ff"));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "3"]);
        assert_eq!(query.get("b").as_deref(), Some("x&a=2"));
        assert_eq!(query.get("c").as_deref(), Some(""));
        assert_eq!(query.filled("d"), None);
        assert_eq!(query.get("e").as_deref(), Some("%zz%4"));
        assert_eq!(query.get("f").as_deref(), Some("v1+json"));
        assert_eq!(query.get("g").as_deref(), Some("\u{fffd}"));
        assert_eq!(query.get("h"), None);
        assert_eq!(Query::new(None).get("a"), None);
    }

    #[test]
    fn in_a_form_a_plus_is_a_space() {
        let form = Form::read("scope=repository%3Aa%3Apull+repository:b:pull&scope=c&password=a%2Bb%26&empty");
        assert_eq!(form.all("scope").collect::<Vec<_>>(), ["repository:a:pull repository:b:pull", "c"]);
        assert_eq!(form.get("password"), Some("a+b&"));
        assert_eq!((form.get("empty"), form.get("other")), (Some(""), None));
    }

    proptest::proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text: String) {
            let encoded = encode(&text).into_owned();
            proptest::prop_assert!(!encoded.contains(['&', '=', '+', '#', ' ', '<', '>', '"']));
            proptest::prop_assert_eq!(decode(&encoded), text);
        }
    }
}
