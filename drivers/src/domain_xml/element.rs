//! An element that keeps count of what was read of it, so that what was not read is never lost.

use roxmltree::Node;

use super::{At, Options, XmlError};

/// Collects what is not supported, or refuses it.
#[derive(Debug)]
pub(super) struct Sieve {
    options: Options,
    ignored: Vec<(At, String)>,
}

impl Sieve {
    pub(super) fn new(options: Options) -> Self {
        Self { options, ignored: Vec::new() }
    }

    /// Notes that something is not supported; an error unless that may be ignored.
    pub(super) fn drop(&mut self, path: String, at: At) -> Result<(), XmlError> {
        if !self.options.ignore_unsupported {
            return Err(XmlError::Unsupported { path, at });
        }
        self.ignored.push((at, format!("{path} at {at}")));
        Ok(())
    }

    /// What was dropped, in document order.
    pub(super) fn ignored(mut self) -> Vec<String> {
        self.ignored.sort_by_key(|(at, _)| (at.line, at.column));
        self.ignored.into_iter().map(|(_, path)| path).collect()
    }
}

/// One element. Read it with [`Element::attr`], [`Element::child`] and so on, then [`Element::finish`] it.
#[derive(Debug)]
pub(super) struct Element<'a> {
    node: Node<'a, 'a>,
    pub(super) path: String,
    attributes: Vec<&'a str>,
    children: Vec<Node<'a, 'a>>,
    text_read: bool,
}

impl<'a> Element<'a> {
    pub(super) fn new(node: Node<'a, 'a>, parent: &str) -> Self {
        let name = node.tag_name().name();
        // A position among its kind, where there is more than one of it.
        let same = |other: &Node<'_, '_>| other.is_element() && other.tag_name() == node.tag_name();
        let siblings = node.parent().map_or(0, |parent| parent.children().filter(same).count());
        let before = node.prev_siblings().filter(same).count();
        let path =
            if siblings > 1 { format!("{parent}/{name}[{before}]") } else { format!("{parent}/{name}") };
        let children = node.children().filter(Node::is_element).collect();
        Self { node, path, attributes: Vec::new(), children, text_read: false }
    }

    pub(super) fn at(&self) -> At {
        position(&self.node, self.node.range().start)
    }

    /// An attribute's value.
    pub(super) fn attr(&mut self, name: &'static str) -> Option<&'a str> {
        self.attributes.push(name);
        self.node.attribute(name)
    }

    /// An attribute that must be there.
    pub(super) fn required(&mut self, name: &'static str, allowed: &str) -> Result<&'a str, XmlError> {
        self.attr(name).ok_or_else(|| self.missing(&format!("@{name}"), allowed))
    }

    /// An attribute that may only have a value that is so anyway.
    pub(super) fn only(
        &mut self,
        sieve: &mut Sieve,
        name: &'static str,
        usual: &[&str],
    ) -> Result<(), XmlError> {
        match self.attr(name) {
            Some(value) if !usual.contains(&value) => self.drop_attr(sieve, name),
            _ => Ok(()),
        }
    }

    /// The value of this attribute is not supported.
    pub(super) fn drop_attr(&self, sieve: &mut Sieve, name: &str) -> Result<(), XmlError> {
        let value = self.node.attribute(name).unwrap_or_default();
        sieve.drop(format!("{}/@{name}={value:?}", self.path), self.at())
    }

    /// This whole element is not supported.
    pub(super) fn drop(&self, sieve: &mut Sieve) -> Result<(), XmlError> {
        sieve.drop(self.path.clone(), self.at())
    }

    /// This whole element is not supported, because of something in it.
    pub(super) fn drop_where(&self, sieve: &mut Sieve, what: &str, value: &str) -> Result<(), XmlError> {
        sieve.drop(format!("{}[{what}={value:?}]", self.path), self.at())
    }

    /// The only child of that name; a second one is left over and so not supported.
    pub(super) fn child(&mut self, name: &str) -> Option<Self> {
        let index = self.children.iter().position(|child| is(child, name))?;
        Some(Self::new(self.children.remove(index), &self.path))
    }

    /// The child of that name in a namespace.
    pub(super) fn foreign(&mut self, namespace: &str, name: &str) -> Option<Self> {
        let fits = |child: &Node<'_, '_>| {
            child.tag_name().name() == name && child.tag_name().namespace() == Some(namespace)
        };
        let index = self.children.iter().position(fits)?;
        Some(Self::new(self.children.remove(index), &self.path))
    }

    /// Every child of that name, in order.
    pub(super) fn all(&mut self, name: &str) -> Vec<Self> {
        let (taken, left) = self.children.iter().partition(|child| is(child, name));
        self.children = left;
        let taken: Vec<Node<'a, 'a>> = taken;
        taken.into_iter().map(|node| Self::new(node, &self.path)).collect()
    }

    /// Every child of one of these names, in order.
    pub(super) fn any(&mut self, names: &[&str]) -> Vec<Self> {
        let fits = |child: &&Node<'_, '_>| names.iter().any(|name| is(child, name));
        let (taken, left) = self.children.iter().partition(fits);
        self.children = left;
        let taken: Vec<Node<'a, 'a>> = taken;
        taken.into_iter().map(|node| Self::new(node, &self.path)).collect()
    }

    pub(super) fn name(&self) -> &'a str {
        self.node.tag_name().name()
    }

    /// Its text, as it is written.
    pub(super) fn text(&mut self) -> String {
        self.text_read = true;
        self.node.children().filter(Node::is_text).filter_map(|text| text.text()).collect()
    }

    pub(super) fn value(&self, what: &str, problem: impl Into<String>, allowed: &str) -> XmlError {
        let path = if what.is_empty() { self.path.clone() } else { format!("{}/{what}", self.path) };
        XmlError::Value { path, at: self.at(), problem: problem.into(), allowed: allowed.to_owned() }
    }

    pub(super) fn missing(&self, what: &str, allowed: &str) -> XmlError {
        self.value(what, "is missing", allowed)
    }

    /// Whatever was not read is not supported.
    pub(super) fn finish(self, sieve: &mut Sieve) -> Result<(), XmlError> {
        for attribute in self.node.attributes() {
            let plain = attribute.namespace().is_none();
            if !plain || !self.attributes.contains(&attribute.name()) {
                let at = position(&self.node, attribute.range().start);
                sieve.drop(format!("{}/@{}", self.path, attribute.name()), at)?;
            }
        }
        for child in self.node.children() {
            match child.text() {
                Some(text) if child.is_text() && !self.text_read && !text.trim().is_empty() => {
                    sieve.drop(format!("{}/text()", self.path), position(&child, child.range().start))?;
                }
                _ => {}
            }
        }
        for child in &self.children {
            Self::new(*child, &self.path).drop(sieve)?;
        }
        Ok(())
    }
}

fn is(node: &Node<'_, '_>, name: &str) -> bool {
    node.tag_name().name() == name && node.tag_name().namespace().is_none()
}

fn position(node: &Node<'_, '_>, offset: usize) -> At {
    let at = node.document().text_pos_at(offset);
    At { line: at.row, column: at.col }
}
