# SPDX-License-Identifier: Apache-2.0
"""JSON texts and what becomes of them, under the names of the public JSONTestSuite: y_ must be read, n_ must not, i_ may.

The texts are made here. `CASES` has (name, bytes, read): whether the text is JSON to this service as a value within an
object, where all but the two escaped NULs and what has duplicate members is as the names say. `FLOATS` are those numbers
that no double holds: among the numbers of a tensor they are infinite, elsewhere refused.
"""


def within(brackets, **texts):
    return {name: brackets[:1] + (text if isinstance(text, bytes) else text.encode()) + brackets[1:]
            for name, text in texts.items()}


def arrays(**texts):
    return within(b"[]", **texts)


def strings(**texts):
    return {name: b'["' + (text if isinstance(text, bytes) else text.encode()) + b'"]' for name, text in texts.items()}


def named(prefix, texts):
    """Texts that are their own names: numbers."""
    return {prefix + text: b"[" + text.encode() + b"]" for text in texts.split()}


READ = {
    **{"y_array_" + k: v for k, v in {
        "arraysWithSpaces": b"[[]  ]", "empty-string": b'[""]', "empty": b"[]", "ending_with_newline": b'["q"]\n',
        "false": b"[false]", "heterogeneous": b'[null, 7, "7", {}]', "null": b"[null]", "with_1_and_newline": b"[1\n]",
        "with_leading_space": b" [1]", "with_several_null": b"[1,null,null,2]", "with_trailing_space": b"[2] "}.items()},
    "y_number": b"[321e64]",
    **named("y_number_", "0e+1 0e1"),
    **{"y_number_" + k: v for k, v in arrays(
        after_space=" 4", double_close_to_zero="-0." + "0" * 75 + "1", int_with_exp="30e1", minus_zero="-0",
        negative_int="-321", negative_one="-1", negative_zero="-0", real_capital_e="2E22", real_capital_e_neg_exp="2E-2",
        real_capital_e_pos_exp="2E+2", real_exponent="321e45", real_fraction_exponent="321.125e67", real_neg_exp="2e-2",
        real_pos_exponent="2e+2", simple_int="321", simple_real="321.0625").items()},
    "y_object": b'{"one":"two", "three":"four"}',
    **{"y_object_" + k: v for k, v in within(
        b"{}", basic='"one":"two"', empty="", empty_key='"":0', extreme_numbers='"a":-3.0e+28,"b":3.0e+28',
        long_strings='"a":[{"b":"%s"}],"b":"%s"' % ("m" * 40, "m" * 40), simple='"a":[]',
        string_unicode='"a":"\\u043f\\u0440\\u0438\\u043c\\u0435\\u0440"', with_newlines='\n"a":"b"\n').items()},
    **{"y_string_" + k: v for k, v in {
        **strings(accepted_surrogate_pair=r"\uD802\udc37", accepted_surrogate_pairs=r"\ud83d\ude3a\ud83d\udc8e",
                  allowed_escapes=r"\"\\\/\b\f\n\r\t", backslash_and_u_escaped_zero=r"\\u0000",
                  backslash_doublequotes=r"\"", comments="p/*q*/r//s", double_escape_a=r"\\a", double_escape_n=r"\\n",
                  escaped_control_character=r"\u0013", escaped_noncharacter=r"\uFFFF", in_array="zxc",
                  last_surrogates_1_and_2=r"\uDBFF\uDFFF", nbsp_uescaped=r"a\u00A0b", pi="\u03c0", simple_ascii="zxc ",
                  uEscape=r"\u0062\u30af\u30EA", uescaped_newline=r"a\u000Ab", unescaped_char_delete="\x7f",
                  unicode=r"\uA66E", unicodeEscapedBackslash=r"\u005C", unicode_2="\u2342\u3234",
                  unicode_escaped_double_quote=r"\u0022", utf8="\u20ac\U0001d11e", with_del_character="b\x7fb"),
        "1_2_3_bytes_UTF-8_sequences": rb'["\u0061\u012b\u12AC"]', "in_array_with_leading_space": b'[ "zxc"]',
        "nonCharacterInUTF-8_U+10FFFF": '["\U0010ffff"]'.encode(), "nonCharacterInUTF-8_U+FFFF": '["\uffff"]'.encode(),
        "one-byte-utf-8": rb'["\u002d"]', "reservedCharacterInUTF-8_U+1BFFF": '["\U0001bfff"]'.encode(), "space": b'" "',
        "surrogates_U+1D11E_MUSICAL_SYMBOL_G_CLEF": rb'["\uD834\uDd1e"]', "three-byte-utf-8": rb'["\u0822"]',
        "two-byte-utf-8": rb'["\u0124"]', "u+2028_line_sep": '["\u2028"]'.encode(),
        "u+2029_par_sep": '["\u2029"]'.encode(), "unicode_U+10FFFE_nonchar": rb'["\uDBFF\uDFFE"]',
        "unicode_U+1FFFE_nonchar": rb'["\uD83F\uDFFE"]', "unicode_U+200B_ZERO_WIDTH_SPACE": rb'["\u200B"]',
        "unicode_U+2064_invisible_plus": rb'["\u2064"]', "unicode_U+FDD0_nonchar": rb'["\uFDD0"]',
        "unicode_U+FFFE_nonchar": rb'["\uFFFE"]'}.items()},
    **{"y_structure_" + k: v for k, v in dict(
        lonely_false=b"false", lonely_int=b"24", lonely_negative_real=b"-0.5", lonely_null=b"null",
        lonely_string=b'"zxc"', lonely_true=b"true", string_empty=b'""', trailing_newline=b'["q"]\n',
        true_in_array=b"[true]", whitespace_array=b" [] ").items()},
    # accepted, though they need not be
    **{"i_number_" + k: v for k, v in arrays(
        double_huge_neg_exp="654.125e-987", real_underflow="654e-20000000").items()},
}

# of the service's own: no NUL in a text, and no member twice
OWN = {
    "y_object_duplicated_key": b'{"a":1,"a":2}', "y_object_duplicated_key_and_value": b'{"a":1,"a":1}',
    "y_object_escaped_null_in_key": rb'{"a\u0000b":1}', "y_string_null_escape": rb'["\u0000"]',
}

FLOATS = {"i_number_" + k: v for k, v in arrays(
    huge_exp="0.5e00" + "7" * 120, neg_int_huge_exp="-2e+9999", pos_double_huge_exp="2.5e+9999",
    real_neg_overflow="-654e200000", real_pos_overflow="654e200000", too_big_neg_int="-" + "321" * 10,
    too_big_pos_int="3" + "0" * 20, very_big_negative_int="-" + "654" * 16).items()}

NOT_READ = {
    **{"i_string_" + k: v for k, v in {
        **strings(**{
            "1st_surrogate_but_2nd_missing": r"\uDADB", "1st_valid_surrogate_2nd_invalid": r"\uD889\u1234",
            "incomplete_surrogate_and_escape_valid": r"\uD801\n", "incomplete_surrogate_pair": r"\uDd1fa",
            "incomplete_surrogates_escape_valid": r"\uD801\uD801\n", "invalid_lonely_surrogate": r"\ud801",
            "invalid_surrogate": r"\ud801abc", "invalid_utf-8": b"\xfe", "inverted_surrogates_U+1D11E": r"\uDd1e\uD834",
            "iso_latin_1": b"\xe8", "lone_second_surrogate": r"\uDFAB", "lone_utf8_continuation_byte": b"\x82",
            "not_in_unicode_range": b"\xf4\xbf\xbf\xbe", "overlong_sequence_2_bytes": b"\xc0\xae",
            "overlong_sequence_6_bytes": b"\xfc\x83\xbf\xbf\xbf\xbe", "truncated-utf-8": b"\xe1\xff",
            "overlong_sequence_6_bytes_null": b"\xfc" + b"\x80" * 5, "UTF8_surrogate_U+D800": b"\xed\xa0\x80",
            "UTF-8_invalid_sequence": b"\xe6\x97\xa5\xfa"}),
        "UTF-16LE_with_BOM": '\ufeff["q"]'.encode("utf-16-le"), "utf16BE_no_BOM": '["q"]'.encode("utf-16-be"),
        "utf16LE_no_BOM": '["q"]'.encode("utf-16-le")}.items()},
    "i_object_key_lone_2nd_surrogate": rb'{"\uDFAB":0}',
    "i_structure_500_nested_arrays": b"[" * 500 + b"]" * 500,
    "i_structure_UTF-8_BOM_empty_object": b"\xef\xbb\xbf{}",
    **{"n_array_" + k: v for k, v in {
        **arrays(**{
            "1_true_without_comma": "7 true", "a_invalid_utf8": b"b\xe6", "colon_instead_of_comma": '"": 7',
            "comma_and_number": ",7", "double_comma": "7,,8", "double_extra_comma": '"q",,', "extra_comma": '"",',
            "inner_array_no_comma": "7[8]", "invalid_utf8": b"\xfe", "items_separated_by_semicolon": "7;8",
            "just_comma": ",", "just_minus": "-", "missing_value": '  , ""', "number_and_comma": "7,",
            "number_and_several_commas": "7,,", "spaces_vertical_tab_formfeed": b'"\x0bq"\x0c', "star_inside": "*"}),
        "comma_after_close": b'[""],', "extra_close": b'["q"]]', "incomplete": b'["q"', "incomplete_invalid_value": b"[q",
        "newlines_unclosed": b'["q",\n7\n,8,', "unclosed": b'[""', "unclosed_trailing_comma": b"[7,",
        "unclosed_with_new_lines": b"[7,\n8\n,9", "unclosed_with_object_inside": b"[{}"}.items()},
    **{"n_incomplete_" + k: v for k, v in arrays(false="fals", null="nul", true="tru").items()},
    "n_multidigit_number_then_00": b"321\0",
    **named("n_number_", """+1 +Inf -01 -1.0. -2. -NaN .-1 .2e-3 0.1.2 0.3e+ 0.3e 0.e1 0e+ 0e 1.0e+ 1.0e- 1.0e 1eE2 2.e+3
                            2.e-3 2.e3 9.e+ Inf NaN"""),
    **{"n_number_" + k: v for k, v in arrays(**{
        "++": "++21", "0_capital_E+": "0E+", "0_capital_E": "0E", "1_000": "2 000.0",
        "U+FF11_fullwidth_digit_one": "\uff11", "expression": "2+3", "hex_1_digit": "0x2", "hex_2_digits": "0x43",
        "infinity": "Infinity", "invalid+-": "0e+-2", "invalid-negative-real": "-21.5bar",
        "invalid-utf-8-in-bigger-int": b"321\xe6", "invalid-utf-8-in-exponent": b"2e1\xe6",
        "invalid-utf-8-in-int": b"0\xe6", "minus_infinity": "-Infinity", "minus_sign_with_trailing_garbage": "-bar",
        "minus_space_1": "- 2", "neg_int_starting_with_zero": "-021", "neg_real_without_int_part": "-.5",
        "neg_with_garbage_at_end": "-2x", "real_garbage_after_e": "2ea", "real_with_invalid_utf8_after_e": b"2e\xe6",
        "real_without_fractional_part": "2.", "starting_with_dot": ".5", "with_alpha": "2.5a-3",
        "with_alpha_char": "2.5H-308", "with_leading_zero": "021"}).items()},
    **{"n_object_" + k: v for k, v in {
        **within(b"{}", **{
            "bracket_key": '[: "q"', "comma_instead_of_colon": '"q", null', "double_colon": '"q"::"b"',
            "emoji": "\U0001f1e8", "garbage_at_end": '"q":"b" 21', "key_with_single_quotes": "q: 'b'",
            "lone_continuation_byte_in_key_and_trailing_comma": b'"\xba":"0",', "missing_colon": '"q" b',
            "missing_key": ':"b"', "missing_semicolon": '"q" "b"', "non_string_key": "2:1",
            "non_string_key_but_huge_number_instead": "8888E8888:1", "repeated_null_null": "null:null,null:null",
            "several_trailing_commas": '"q":0,,,,', "single_quote": "'q':0", "trailing_comma": '"q":0,',
            "two_commas_in_a_row": '"q":"b",,"c":"d"', "unquoted_key": 'q: "b"', "with_single_string": '"q":"b","a"'}),
        "bad_value": b'["q", truth]', "missing_value": b'{"q":', "no-colon": b'{"q"', "unterminated-value": b'{"q":"b',
        "trailing_comment": b'{"q":"b"}/**/', "trailing_comment_open": b'{"q":"b"}/**//',
        "trailing_comment_slash_open": b'{"q":"b"}//', "trailing_comment_slash_open_incomplete": b'{"q":"b"}/',
        "with_trailing_garbage": b'{"q":"b"}#'}.items()},
    "n_single_space": b" ",
    **{"n_string_" + k: v for k, v in {
        **strings(**{
            "1_surrogate_then_escape": "\\uD801\\", "1_surrogate_then_escape_u": r"\uD801\u",
            "1_surrogate_then_escape_u1": r"\uD801\u2", "1_surrogate_then_escape_u1x": r"\uD801\u2x",
            "backslash_00": b"\\\0", "escape_x": r"\x01", "escaped_backslash_bad": "\\\\\\",
            "escaped_ctrl_char_tab": "\\\t", "escaped_emoji": "\\\U0001f300", "incomplete_escape": "\\",
            "incomplete_escaped_character": r"\u00B", "incomplete_surrogate": r"\uD834\uDe",
            "incomplete_surrogate_escape_invalid": r"\uD801\uD801\x", "invalid-utf-8-in-escape": b"\\u\xe6",
            "invalid_backslash_esc": r"\q", "invalid_unicode_escape": r"\uzzzz", "invalid_utf8_after_escape": b"\\\xe6",
            "unescaped_ctrl_char": b"q\0q", "unescaped_newline": "two\nlines", "unescaped_tab": "\t"}),
        **arrays(accentuated_char_no_quotes="\u00e8", leading_uescaped_thinspace='\\u0020"zxc"',
                 no_quotes_with_bad_escape="\\n", single_quote="'one quote'"),
        "single_doublequote": b'"', "single_string_no_double_quotes": b"zxc", "start_escape_unclosed": b'["\\',
        "unicode_CapitalU": rb'"\UA66E"', "with_trailing_garbage": b'""y'}.items()},
    **{"n_structure_" + k: v for k, v in {
        **arrays(**{"U+2060_word_joined": "\u2060", "angle_bracket_null": "<null>", "capitalized_True": "True",
                    "null-byte-outside-string": b"\0", "whitespace_formfeed": b"\x0c",
                    "uescaped_LF_before_string": '\\u000A""'}),
        "100000_opening_arrays": b"[" * 100000, "UTF8_BOM_no_data": b"\xef\xbb\xbf", "angle_bracket_.": b"<.>",
        "array_trailing_garbage": b"[2]y", "array_with_extra_array_close": b"[2]]",
        "array_with_unclosed_string": b'["zxc]', "ascii-unicode-identifier": "b\u00e5".encode(),
        "close_unopened_array": b"2]", "comma_instead_of_closing_brace": b'{"q": true,', "double_array": b"[][]",
        "end_array": b"]", "incomplete_UTF8_BOM": b"\xef\xbb{}", "lone-invalid-utf-8": b"\xe6",
        "lone-open-bracket": b"[", "no_data": b"", "number_with_trailing_garbage": b"3@",
        "object_followed_by_closing_object": b"{}}", "object_unclosed_no_value": b'{"":',
        "object_with_comment": b'{"q":/*word*/"b"}', "object_with_trailing_garbage": b'{"q": true} "y"',
        "open_array_apostrophe": b"['", "open_array_comma": b"[,", "open_array_object": b'[{"":' * 50000 + b"\n",
        "open_array_open_object": b"[{", "open_array_open_string": b'["q', "open_array_string": b'["q"',
        "open_object": b"{", "open_object_close_array": b"{]", "open_object_comma": b"{,",
        "open_object_open_array": b"{[", "open_object_open_string": b'{"q', "open_open": b'["\\{' * 4,
        "open_object_string_with_apostrophes": b"{'q'", "single_eacute": b"\xe8", "single_star": b"*",
        "trailing_#": b'{"q":"b"}#{}', "unclosed_array": b"[2", "unclosed_array_partial_null": b"[ true, nul",
        "unclosed_array_unfinished_false": b"[ null, fals", "unclosed_array_unfinished_true": b"[ null, tru",
        "unclosed_object": b'{"zxc":"qwe"', "unicode-identifier": "\u00e5".encode(),
        "whitespace_U+2060_word_joiner": "\u2060".encode()}.items()},
}

CASES = ([(name, text, True) for name, text in READ.items()]
         + [(name, text, False) for name, text in {**OWN, **FLOATS, **NOT_READ}.items()])
