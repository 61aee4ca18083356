//! What a Rust source file says, read once by syn and kept flat, so that a rule is a filter over a list.
//!
//! Macro bodies are no syntax tree; from them only names and paths are taken.

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A path that is used, imports included: `std::fs::read`, `Instant`.
    Path,
    /// A macro that is called: `todo`.
    Macro,
    /// A function; `Fact::lines` counts its lines that are neither blank nor comment only.
    Function,
    /// A struct, enum, union, trait or type alias.
    Type,
    /// A module declared here.
    Module,
    /// A constant without a doc comment.
    BareConst,
    Async,
    Unsafe,
    Float,
    /// An attribute by its path: `ignore`.
    Attribute,
}

/// One thing said at one place. `in_test`: it is compiled only for tests.
#[derive(Debug)]
pub(crate) struct Fact {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) lines: usize,
    pub(crate) in_test: bool,
}

#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) facts: Vec<Fact>,
    /// Lines of the file outside of its test modules.
    pub(crate) lines: usize,
    pub(crate) has_module_doc: bool,
}

/// Reads a source file; the error is `(line, message)`.
pub(crate) fn read(text: &str) -> Result<Facts, (usize, String)> {
    let file = syn::parse_file(text).map_err(|e| (e.span().start().line, e.to_string()))?;
    let mut reader = Reader { text: text.lines().collect(), facts: Vec::new(), test_depth: 0, test_lines: 0 };
    reader.visit_file(&file);
    Ok(Facts {
        lines: reader.text.len() - reader.test_lines,
        facts: reader.facts,
        has_module_doc: file.attrs.iter().any(|a| a.path().is_ident("doc")),
    })
}

struct Reader<'t> {
    text: Vec<&'t str>,
    facts: Vec<Fact>,
    test_depth: usize,
    test_lines: usize,
}

impl Reader<'_> {
    fn push(&mut self, kind: Kind, name: impl Into<String>, span: Span) {
        let line = span.start().line;
        self.facts.push(Fact { kind, name: name.into(), line, lines: 0, in_test: self.test_depth > 0 });
    }

    fn function(&mut self, name: &syn::Ident, from: Span, to: Span) {
        let (first, last) = (from.start().line, to.end().line);
        let code = self.text[first - 1..last].iter().map(|l| l.trim());
        let lines = code.filter(|l| !l.is_empty() && !l.starts_with("//")).count();
        let in_test = self.test_depth > 0;
        self.facts.push(Fact { kind: Kind::Function, name: name.to_string(), line: first, lines, in_test });
    }

    fn import(&mut self, prefix: &str, tree: &syn::UseTree) {
        let join = |name: &syn::Ident| {
            if prefix.is_empty() { name.to_string() } else { format!("{prefix}::{name}") }
        };
        match tree {
            syn::UseTree::Path(path) => self.import(&join(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.push(Kind::Path, join(&name.ident), name.span()),
            syn::UseTree::Rename(rename) => self.push(Kind::Path, join(&rename.ident), rename.span()),
            syn::UseTree::Glob(glob) => self.push(Kind::Path, format!("{prefix}::*"), glob.span()),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.import(prefix, item)),
        }
    }

    /// Joins `a :: b` to one path; everything else in a macro body is passed over.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Option<(String, Span)> = None;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    path = match path.take() {
                        Some((text, span)) if colons == 2 => Some((format!("{text}::{ident}"), span)),
                        other => {
                            self.flush(other);
                            Some((ident.to_string(), ident.span()))
                        }
                    };
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.flush(path.take());
                    self.tokens(group.stream());
                }
                _ => self.flush(path.take()),
            }
        }
        self.flush(path);
    }

    fn flush(&mut self, path: Option<(String, Span)>) {
        if let Some((text, span)) = path {
            self.push(Kind::Path, text, span);
        }
    }

    fn constant(&mut self, attrs: &[syn::Attribute], name: &syn::Ident) {
        if !attrs.iter().any(|a| a.path().is_ident("doc")) {
            self.push(Kind::BareConst, name.to_string(), name.span());
        }
    }

    fn signature(&mut self, signature: &syn::Signature, to: Span) {
        if let Some(token) = &signature.asyncness {
            self.push(Kind::Async, "async fn", token.span());
        }
        if let Some(token) = &signature.unsafety {
            self.push(Kind::Unsafe, "unsafe fn", token.span());
        }
        self.function(&signature.ident, signature.span(), to);
    }

    /// Walks an item; inside one that is only for tests, facts are marked so and its lines are not counted.
    fn scoped(&mut self, attrs: &[syn::Attribute], span: Span, walk: impl FnOnce(&mut Self)) {
        let is_test = attrs.iter().any(is_test_attribute);
        if is_test && self.test_depth == 0 {
            self.test_lines += span.end().line - span.start().line + 1;
        }
        self.test_depth += usize::from(is_test);
        walk(self);
        self.test_depth -= usize::from(is_test);
    }
}

/// `#[test]`, `#[tokio::test]`, `#[cfg(test)]`, `#[cfg(any(test, ..))]`.
fn is_test_attribute(attribute: &syn::Attribute) -> bool {
    if attribute.path().segments.last().is_some_and(|last| last.ident == "test") {
        return true;
    }
    let syn::Meta::List(list) = &attribute.meta else { return false };
    fn names_test(tokens: TokenStream) -> bool {
        let mut negated = false;
        tokens.into_iter().any(|token| match token {
            TokenTree::Ident(ident) => {
                negated = ident == "not";
                ident == "test"
            }
            TokenTree::Group(group) => !negated && names_test(group.stream()),
            _ => false,
        })
    }
    list.path.is_ident("cfg") && names_test(list.tokens.clone())
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attrs: &[syn::Attribute] = match item {
            syn::Item::Fn(i) => &i.attrs,
            syn::Item::Mod(i) => &i.attrs,
            syn::Item::Impl(i) => &i.attrs,
            syn::Item::Use(i) => &i.attrs,
            syn::Item::Struct(i) => &i.attrs,
            syn::Item::Enum(i) => &i.attrs,
            syn::Item::Const(i) => &i.attrs,
            syn::Item::Macro(i) => &i.attrs,
            _ => &[],
        };
        self.scoped(attrs, item.span(), |reader| visit::visit_item(reader, item));
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.signature(&item.sig, item.block.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.scoped(&item.attrs, item.span(), |reader| {
            reader.signature(&item.sig, item.block.span());
            visit::visit_impl_item_fn(reader, item);
        });
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.signature(&item.sig, item.span());
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.push(Kind::Module, item.ident.to_string(), item.ident.span());
        visit::visit_item_mod(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.push(Kind::Type, item.ident.to_string(), item.ident.span());
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.push(Kind::Type, item.ident.to_string(), item.ident.span());
        visit::visit_item_enum(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.push(Kind::Type, item.ident.to_string(), item.ident.span());
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.push(Kind::Type, item.ident.to_string(), item.ident.span());
        visit::visit_item_type(self, item);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.constant(&item.attrs, &item.ident);
        visit::visit_item_const(self, item);
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.constant(&item.attrs, &item.ident);
        visit::visit_impl_item_const(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import("", &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.push(Kind::Path, names.join("::"), path.span());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        if let Some(last) = call.path.segments.last() {
            self.push(Kind::Macro, last.ident.to_string(), call.span());
        }
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let names: Vec<String> = attribute.path().segments.iter().map(|s| s.ident.to_string()).collect();
        self.push(Kind::Attribute, names.join("::"), attribute.span());
    }

    fn visit_expr_async(&mut self, expr: &'ast syn::ExprAsync) {
        self.push(Kind::Async, "async block", expr.span());
        visit::visit_expr_async(self, expr);
    }

    fn visit_expr_unsafe(&mut self, expr: &'ast syn::ExprUnsafe) {
        self.push(Kind::Unsafe, "unsafe block", expr.span());
        visit::visit_expr_unsafe(self, expr);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if let Some(token) = &item.unsafety {
            self.push(Kind::Unsafe, "unsafe impl", token.span());
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_lit_float(&mut self, literal: &'ast syn::LitFloat) {
        self.push(Kind::Float, literal.to_string(), literal.span());
    }
}
