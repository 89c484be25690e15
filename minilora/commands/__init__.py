"""The command line: each command prints what it did and what comes next.

A command is the module of its name, with two functions: ``add_options(parser)`` and
``run(options)``. It is imported when the command is used.

In reading order:

    cli.py                           the table of commands, and ``main``
    options.py                       options that several commands share
    demo.py, demo_pace.py, demo_picture.py, demo_text.py, zoo.py    try it
    learn.py, book.py                learn
    notebook.py, grade.py            teach
    train.py, generate.py, merge.py  use it
    train_options.py                 the options of ``train``, and what they make
    method_options.py                those that choose a method, and its config
    keeping.py                       where trained weights go when the disk is full
    classify.py                      train an encoder with a head
    export.py                        for llama.cpp and vLLM
    chat.py                          talk to it
    combine.py, analyze.py           add several adapters; what one changed
    first_example.py                 an example as the model will see it, for ``train``
    hub.py, hub_tables.py            keep it
    hub_names.py                     names of the hub where a folder is asked for; ``train --push``
    jobs.py                          the queue of jobs, and its workers
    jobs_adapt.py                    the loop that adapts: corrections in, the next champion out
    serve.py, serve_keys.py          the OpenAI API for a base and its adapters; who may ask
    serve_experiment.py              the evidence of its experiments
    serve_workers.py                 several processes behind one address
    footprint.py                     the memory of three methods, for ``demo`` and ``train``
    plan.py, chart.py, bench.py      plan
    plan_questions.py                serving, several cards, money, spot instances, storage
    quantities.py                    numbers and times as people type them
"""
