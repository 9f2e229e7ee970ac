"""What Triton's interpreter does anew for each operation of a kernel, done once: the same results in less time.

`interpreter.install` puts these in their places. None changes a number: types and shapes that were made before are
taken again, and checks whose outcome nobody reads are left out.
"""

from dataclasses import replace


def install(interpreter):
    """Patch triton.runtime.interpreter and triton.language; AttributeError where something is not there."""
    from triton.language import core

    patch_once_a_launch(interpreter)
    pass_semantics(interpreter)
    remember_dtypes(interpreter)
    remember_shapes(core)
    leave_out_overflow(interpreter)
    remember_operands(interpreter)


def patch_once_a_launch(interpreter):
    """The interpreter patches triton.language at each call of a device function, half of its time. Once will do."""
    patch, run, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def patch_once(function):
        if id(function.__globals__) in patched:
            return None
        patched.add(id(function.__globals__))
        return patch(function)

    def run_afresh(self, *args, **kwargs):
        patched.clear()
        return run(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, run_afresh


def pass_semantics(interpreter):
    """Each function of triton.language gets the interpreter's meaning without a new dict of its arguments."""
    semantic = interpreter.interpreter_semantic
    if not hasattr(interpreter, "_patch_attr"):
        raise AttributeError("_patch_attr")

    def patch(owner, name, member, builder, scope):
        def called(*args, **kwargs):
            kwargs["_semantic"] = semantic
            return member(*args, **kwargs)

        scope.set_attr(owner, name, called)

    interpreter._patch_attr = patch


def remember_dtypes(interpreter):
    """NumPy's dtype of a type was found by making a table of all of them."""
    find, known = interpreter._get_np_dtype, {}

    def np_dtype(of):
        name = of.scalar.name
        if name not in known:
            known[name] = find(of)
        return known[name]

    interpreter._get_np_dtype = np_dtype


def remember_shapes(core):
    """A tensor's shape was made anew, with a type for each of its numbers, twice for each result."""
    make_type, make_tensor = core.block_type.__init__, core.tensor.__init__
    of_types, of_tensors = {}, {}

    def block_type(self, element_ty, shape):
        key = tuple(getattr(size, "value", size) for size in shape)
        if key not in of_types:
            make_type(self, element_ty, shape)
            of_types[key] = self.shape, self.numel, str(self.shape)
            return
        self.element_ty = element_ty
        self.shape, self.numel, text = of_types[key]
        self.name = f"<{text}, {element_ty}>"

    def tensor(self, handle, type):
        key = tuple(type.shape) if type.is_block() else ()
        if key not in of_tensors:
            make_tensor(self, handle, type)
            of_tensors[key] = self.shape, self.numel
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = of_tensors[key]

    core.block_type.__init__, core.tensor.__init__ = block_type, tensor


def leave_out_overflow(interpreter):
    """Sums and products of integers were made once more in int64, for an assertion that is only made in debugging."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)


# Of two operands of one such type, and of one shape, an operation has nothing to convert.
PLAIN = {"fp32", "fp64", "int1", "int32", "int64"}


def remember_operands(interpreter):
    """The operands of +, *, < and so on were converted and broadcast at each operation: where they are alike already
    there is nothing to do, and a number becomes the same tensor beside every tensor of a type and shape."""
    semantic = interpreter.interpreter_semantic
    convert, numbers = semantic.binary_op_type_checking_impl, {}

    def kind(tensor):
        return tensor.type.name

    def operands(lhs, rhs, *how, **more):
        left, right = isinstance(lhs, semantic.tensor), isinstance(rhs, semantic.tensor)
        if left and right:
            if kind(lhs) == kind(rhs) and lhs.dtype.name in PLAIN:
                return lhs, rhs
            return convert(lhs, rhs, *how, **more)
        if left == right:
            return convert(lhs, rhs, *how, **more)
        number, tensor = (rhs, lhs) if left else (lhs, rhs)
        # repr: 0.0 and -0.0 are equal, and so are 1, 1.0 and True
        key = left, repr(number), kind(tensor), how, tuple(more.items())
        if key in numbers:
            return (lhs, numbers[key]) if left else (numbers[key], rhs)
        converted = convert(lhs, rhs, *how, **more)
        if converted[not left] is tensor:
            numbers[key] = converted[left]
        return converted

    semantic.binary_op_type_checking_impl = operands
